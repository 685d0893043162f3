#include "src/watch/html.h"

#include <fmt/format.h>

#include "src/tokenizer/utf8.h"

namespace qt {

namespace {

// Two themes by the reader's own choice, one column on a phone, black on white in print.
constexpr std::string_view kStyle = R"css(
:root {
  color-scheme: light dark;
  --page: #f7f7f5; --card: #ffffff; --text: #1c2126; --soft: #5d6670; --line: #dcdfe1; --grid: #e8eaeb;
  --c1: #1f63a6; --c2: #bf5410; --c3: #2c7d4f; --bad: #b3261e; --good: #2c7d4f; --warn: #94630a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #121518; --card: #1b1f24; --text: #e7e8e6; --soft: #9aa4ae; --line: #323940; --grid: #2a3036;
    --c1: #79b4f0; --c2: #f2a468; --c3: #7cc79b; --bad: #f28b82; --good: #7cc79b; --warn: #e3b55e;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 68rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .7rem; }
p { margin: .4rem 0; }
header .about { color: var(--soft); margin: .3rem 0 .9rem; overflow-wrap: anywhere; }
.head { display: flex; flex-wrap: wrap; gap: .3rem .8rem; align-items: center; }
.state {
  font-size: .8rem; font-weight: 600; padding: .1rem .6rem; border-radius: 1rem; border: 1px solid currentColor;
}
.state.running, .state.starting, .state.finished { color: var(--good); }
.state.stopped { color: var(--warn); }
.state.diverged, .state.interrupted { color: var(--bad); }
.bar { height: .5rem; background: var(--line); border-radius: .25rem; overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--c1); }
.bar i.over { background: var(--bad); }
.card, .tiles > div, figure.chart {
  background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .8rem .9rem;
}
.tiles { display: grid; grid-template-columns: repeat(3, 1fr); gap: .7rem; margin-top: 1rem; }
.tiles .name { color: var(--soft); font-size: .82rem; }
.tiles .value { font-size: 1.55rem; line-height: 1.25; font-weight: 600; font-variant-numeric: tabular-nums; }
.tiles .value.words { font-size: 1.1rem; line-height: 1.75; font-weight: 500; color: var(--soft); }
.tiles .more { color: var(--soft); font-size: .82rem; }
.charts { display: grid; grid-template-columns: 1fr; gap: .7rem; }
.charts.pair { grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); margin-top: .7rem; }
figure.chart { margin: 0; min-width: 0; }
figcaption { font-weight: 600; display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; }
.legend { font-weight: 400; font-size: .82rem; color: var(--soft); display: flex; flex-wrap: wrap; gap: 0 .9rem; }
.key::before { content: ""; display: inline-block; vertical-align: middle; margin-right: .35rem; background: var(--c); }
.k-line::before { width: 1.1rem; height: 2.5px; }
.k-band::before { width: 1.1rem; height: .7rem; opacity: .35; }
.k-dots::before { width: .5rem; height: .5rem; border-radius: 50%; }
.c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); }
.unit, .x-label { font-size: .78rem; color: var(--soft); }
.unit { margin: .3rem 0 .4rem; }
.x-label { text-align: right; margin-top: 1.5rem; }
.plot { position: relative; height: 15rem; margin: 0 .9rem 0 3.2rem; }
.pair .plot { height: 10rem; }
.plot svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.plot path { fill: none; vector-effect: non-scaling-stroke; stroke-linejoin: round; }
.plot .grid { stroke: var(--grid); stroke-width: 1; }
.plot .line { stroke: var(--c); stroke-width: 1.8; }
.plot .thin { stroke: var(--c); stroke-width: 1; opacity: .45; }
.plot .band { fill: var(--c); opacity: .18; stroke: none; }
.plot .dots { stroke: var(--c); stroke-width: 6; stroke-linecap: round; }
.plot span { position: absolute; font-size: .78rem; color: var(--soft); font-variant-numeric: tabular-nums; white-space: nowrap; }
.plot .y { right: calc(100% + .4rem); transform: translateY(-50%); }
.plot .x { top: calc(100% + .25rem); transform: translateX(-50%); }
.empty, .note, .card p.note { color: var(--soft); }
.note { font-size: .85rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
td, th { text-align: left; vertical-align: top; padding: .28rem .8rem .28rem 0; border-top: 1px solid var(--line); }
tr:first-child > td, tr:first-child > th { border-top: 0; }
th { color: var(--soft); font-weight: 500; }
td.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td.w, td.t { overflow-wrap: anywhere; }
.events td.t { width: 1%; }
td.t { white-space: nowrap; color: var(--soft); font-variant-numeric: tabular-nums; }
td .bar { min-width: 5rem; margin-top: .5rem; }
.card + .card { margin-top: .7rem; }
.card h3 { font-size: 1rem; margin: 0 0 .4rem; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font: .88rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.word { white-space: nowrap; }
.sample { unicode-bidi: isolate; }
.card .step { color: var(--soft); font-size: .82rem; margin-bottom: .25rem; }
details > summary { cursor: pointer; color: var(--soft); margin: .6rem 0; }
.columns { columns: 19rem auto; column-gap: 2rem; }
.columns tr { break-inside: avoid; }
footer { margin-top: 2.5rem; color: var(--soft); font-size: .82rem; }
@media (max-width: 34rem) {
  body { padding: 1rem .7rem 2rem; }
  .tiles { grid-template-columns: repeat(2, 1fr); gap: .5rem; }
  .tiles .value { font-size: 1.3rem; }
  .plot { height: 12rem; margin-left: 2.9rem; }
  .pair .plot { height: 9rem; }
  td .bar { min-width: 3rem; }
  .events td, .events td.t { display: block; width: auto; border: 0; padding: 0; }
  .events tr { display: block; border-top: 1px solid var(--line); padding: .4rem 0; }
  .events tr:first-child { border-top: 0; }
}
@media print {
  :root {
    --page: #fff; --card: #fff; --text: #000; --soft: #444; --line: #bbb; --grid: #ddd;
    --c1: #1f63a6; --c2: #bf5410; --c3: #2c7d4f; --bad: #b3261e; --good: #2c7d4f; --warn: #94630a;
  }
  body { max-width: none; padding: 0; font-size: 11pt; }
  figure.chart, .card, .tiles > div, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
)css";

}  // namespace

std::string html_text(std::string_view text) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint point = utf8_at(text, at);
    const char32_t value = point.value;
    const bool control = (value < 0x20 && value != '\n' && value != '\t') || (value >= 0x7F && value < 0xA0);
    if (point.bytes == 0 || control) {
      out += "\xEF\xBF\xBD";
    } else if (value == '&') {
      out += "&amp;";
    } else if (value == '<') {
      out += "&lt;";
    } else if (value == '>') {
      out += "&gt;";
    } else if (value == '"') {
      out += "&quot;";
    } else if (value == '\'') {
      out += "&#39;";
    } else {
      out += text.substr(at, static_cast<std::size_t>(point.bytes));
    }
    at += point.bytes == 0 ? 1 : static_cast<std::size_t>(point.bytes);
  }
  return out;
}

std::string html_page(std::string_view title, std::string_view body) {
  return fmt::format(
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
      "'unsafe-inline'\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<meta name=\"referrer\" content=\"no-referrer\">\n<title>{}</title>\n<style>{}</style>\n</head>\n"
      "<body>\n{}</body>\n</html>\n",
      html_text(title), kStyle, body);
}

}  // namespace qt
