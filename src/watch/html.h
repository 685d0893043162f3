// One HTML page that stands alone: text made harmless, a frame with its style, nothing fetched from anywhere.
// What is on it is src/watch/report.cpp.
#pragma once

#include <string>
#include <string_view>

namespace qt {

// The text as it may stand between tags or in a quoted attribute. Control characters and bytes that are no
// UTF-8 become U+FFFD.
std::string html_text(std::string_view text);

// The page around `body`, which is HTML. Its policy forbids scripts and the network, to a hostile text that
// found a way through as well.
std::string html_page(std::string_view title, std::string_view body);

}  // namespace qt
