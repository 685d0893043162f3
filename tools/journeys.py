#!/usr/bin/env python3
"""Follows a value through the code as text, and counts how often its way leads back to a file it had left.

    tools/journeys.py                      all journeys of the table below
    tools/journeys.py options plan -v      two of them, with their paths
    tools/journeys.py --from src/train/run.cpp:run_train:loaded
    tools/journeys.py --tree DIR           another checkout of the project

Nothing is compiled or run. Needs ctags (Debian: universal-ctags). What is counted:

file     A source with its header: `engine.cpp` and `engine.h` are one. Tests and benches are left out.
carrier  A name that holds the value in one function. The parameter at which the journey starts is a carrier. So
         is a variable that is set, or that a loop sets, from an expression that names a carrier, and a
         parameter to which a call passes such an expression. The carrier's members are the value too. What a
         method of the carrier returns is not, and neither is an object that was made with it or had a member
         set from it.
member   A journey may start at a member: `loaded.options.quant`. Then a name that holds the whole is followed
         only where it is copied or passed as it is, or where that member of it is named.
holder   A journey may name the type of its value. A class that has a member of that type holds the value there, and so
         does a class with a member of such a class. An object of it that is set from an expression that names a
         carrier is followed as a journey that starts at that member: where the object is copied or passed as it
         is, or where that member of it is named. What a function makes of the object is not the value.
call     A call of a function, constructor or macro of this tree that has a carrier in its arguments.
         The definition stands in a file that the caller's file includes, directly or not; of several the
         nearest is taken, then the one with the same number of parameters. A method is found by the class
         with which its object is declared. A function with log, error or warning in its name is a message,
         and is not followed. What is chosen while the program runs is not known here: a virtual call ends
         the way, and the journey goes on at its next start.
path     The functions entered, depth first, in the order in which the calls are written. A function that was
         entered before as the same parameter is entered again, but its body is not followed again. A function
         of at most three lines is short for an expression: it is on the path where the value goes on from it,
         and only the first time.
stay     A longest stretch of the path in one file.
return   A stay in a file that the path had left before. So stays = files entered + returns.
"""

import argparse
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

# What a journey is called, where it starts, as [FILE:]FUNCTION:PARAM[.MEMBER...], and the type of its value where
# holders are followed. Each row of starts is one start, of which the first spelling is taken that the tree has: one
# script measures the tree before and after a move. Further rows are where the way goes on after a virtual call, an
# output argument or an object.
JOURNEYS = {
    "token": ("a token of a step", [
        ["Engine.train_step:fetch"],
        ["Block.forward:x_NC"],
        ["Linear.forward:x_MK"],
        ["CudaBackend.run_op:op"],
        ["kernels/cuda/packed_matmul.cu:run:op"],
    ]),
    "checkpoint": ("a checkpoint's bytes, saved, and read back in three ways", [
        ["write_tensors:views"],
        ["CheckpointStore.load:checkpoint"],
        ["load_weights:path"],
        ["CheckpointParams.CheckpointParams:checkpoint"],
        ["CheckpointParams.read:out"],
    ]),
    "quant": ("--quant", [
        ["run_train:loaded.options.quant", "run_train:call.loaded.options.quant"],
        ["Model.Model:options.weights"],
        ["Block.Block:format"],
        ["Optimizer.Optimizer:weights"],
        ["packed_view:format"],
        ["kernels/cuda/packed_matmul.cu:run:op.w.format"],
        ["kernels/cuda/quantise.cu:run:op.w.format", "kernels/cuda/quantize.cu:run:op.w.format"],
    ]),
    "options": ("the options of a run", [["run_train:loaded", "run_train:call.loaded"]], "Options"),
    "plan": ("a `plan` call", [["run_plan:loaded", "run_plan:call.loaded"]], "Options"),
}

SOURCES = {".h", ".cpp", ".cu", ".cuh"}
SKIPPED = {"tests", "bench", "tools", "docs"}
SMALL_LINES = 3
MESSAGE = re.compile(r"(^|_)(log|error|warning)(_|$)|Error$")
TOKEN = re.compile(r"""//[^\n]*|/\*.*?\*/|R"\(.*?\)"|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])+'|[A-Za-z_]\w*"""
                   r"""|\d(?:[\w.]|'(?=\w))*|::|->|\+\+|--|<<=|<<|[-+*/%&|^=!<>]=|&&|\|\||\S""", re.S)
NAME = re.compile(r"[A-Za-z_]\w*$")
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)
OPEN, CLOSE = {"(": ")", "[": "]", "{": "}"}, {")", "]", "}"}
LIBRARIES = {"std", "fs", "fmt", "chrono", "filesystem"}
WORDS = {"if", "for", "while", "switch", "return", "sizeof", "catch", "throw", "new", "delete", "else", "do", "case",
         "const", "auto", "constexpr", "static", "decltype", "alignof", "static_assert", "noexcept", "operator",
         "static_cast", "reinterpret_cast", "const_cast", "dynamic_cast", "template", "typename", "using", "namespace"}


class Token:
    """A word of the source; `match` is the index of the bracket that closes or opens this one."""

    def __init__(self, text, line):
        self.text, self.line, self.match = text, line, None


class Function:
    def __init__(self, name, scope, is_local, is_macro, path, lines, params, head, body):
        self.name, self.scope, self.path, self.params = name, scope, path, params
        self.is_local, self.is_macro = is_local, is_macro  # is_local: no other file sees it
        self.line, self.lines = lines[0], lines[1] - lines[0] + 1
        self.head, self.body = head, body  # indices of tokens: of the name, and of what follows the parameters

    @property
    def title(self):
        return f"{self.scope}.{self.name}" if self.scope else self.name


def tokens_of(text):
    tokens, line, at = [], 1, 0
    for m in TOKEN.finditer(text):
        line += text.count("\n", at, m.start())
        at = m.start()
        word = m.group()
        if not word.startswith(("//", "/*")):
            tokens.append(Token('""' if word[0] in "\"'" or word.startswith('R"') else word, line))
    stack = []
    for i, t in enumerate(tokens):
        if t.text in OPEN:
            stack.append(i)
        elif t.text in CLOSE:
            while stack and OPEN[tokens[stack[-1]].text] != t.text:
                stack.pop()
            if stack:
                first = stack.pop()
                tokens[first].match, t.match = i, first
    return tokens


def end_of_template(tokens, i, last):
    """Index of the > that closes the < at i, where the two read as template arguments; else 0."""
    depth = 0
    while i < last:
        text = tokens[i].text
        if text == "<":
            depth += 1
        elif text == ">":
            depth -= 1
            if depth == 0:
                return i
        elif text == "(" and tokens[i].match:
            i = tokens[i].match
        elif text in (";", "{", "}", "&&", "||", ")", '""', "?"):
            return 0
        i += 1
    return 0


def split_at_commas(tokens, first, last):
    """The spans between the commas of [first, last); brackets and template arguments stay whole."""
    spans, start, i = [], first, first
    while i < last:
        t = tokens[i]
        if t.text in OPEN and t.match is not None and t.match <= last:
            i = t.match
        elif t.text == "<" and i > first and NAME.match(tokens[i - 1].text):
            i = end_of_template(tokens, i, last) or i
        elif t.text == ",":
            spans.append((start, i))
            start = i + 1
        i += 1
    return spans + [(start, last)] if start < last else spans


def end_of_expression(tokens, i, last, ends):
    while i < last and tokens[i].text not in ends:
        i = tokens[i].match if tokens[i].text in OPEN and tokens[i].match else i
        i += 1
    return i


def parameter_names(tokens, first, last):
    names = []
    for a, b in split_at_commas(tokens, first, last):
        words = [t.text for t in tokens[a:end_of_expression(tokens, a, b, ("=", "["))]]
        names.append(next((w for w in reversed(words) if NAME.match(w)), ""))
    return names


class Tree:
    """The sources of a checkout: tokens, includes and definitions. A unit is a source with its header."""

    def __init__(self, root):
        self.root = Path(root)
        self.paths = sorted(p.relative_to(self.root).as_posix() for p in self.root.rglob("*")
                            if p.suffix in SOURCES and self.is_read(p.relative_to(self.root)))
        self.units = {p: str(Path(p).with_suffix("")) for p in self.paths}
        self.files = defaultdict(list)  # of a unit
        self.tokens, self.includes = {}, defaultdict(set)
        for path in self.paths:
            text = (self.root / path).read_text(errors="replace")
            self.tokens[path] = tokens_of(text)
            self.files[self.units[path]].append(path)
            self.includes[self.units[path]].update(self.units[f] for f in INCLUDE.findall(text) if f in self.units)
        self.functions, self.classes = defaultdict(list), defaultdict(set)
        self.members = []  # (class, member, type), of objects, not of references
        self.read_tags()
        self.seen_from = {}

    @staticmethod
    def is_read(path):
        return not (set(path.parts[:-1]) & SKIPPED or path.parts[0].startswith((".", "build")))

    def read_tags(self):
        command = ["ctags", "-f", "-", "--languages=C++,CUDA", "--langmap=C++:+.cu.cuh", "--fields=neKsSt",
                   "--kinds-C++=cdfsm", "--sort=no", "-L", "-"]
        try:
            done = subprocess.run(command, input="\n".join(self.paths), capture_output=True, text=True, cwd=self.root)
        except FileNotFoundError:
            sys.exit("ctags is missing: apt install universal-ctags")
        if done.returncode:
            sys.exit(f"ctags failed: {done.stderr.strip()}")
        for row in done.stdout.splitlines():
            name, path, rest = row.split("\t", 2)
            kind, *fields = rest.split(';"\t', 1)[1].split("\t")
            value = dict(f.split(":", 1) for f in fields if ":" in f)
            if kind in ("class", "struct"):
                self.classes[name].add(self.units[path])
            elif kind == "member":
                self.members.append((value.get("struct", value.get("class", "")).split("::")[-1], name,
                                     value.get("typeref", "").removeprefix("typename:")))
            elif kind in ("function", "macro") and "signature" in value and not name.startswith("__anon"):
                scope = value.get("class", value.get("struct", ""))
                is_local = "__anon" in scope + value.get("namespace", "")
                line = int(value["line"])
                self.add_function(name, scope.split("::")[-1], is_local, kind == "macro", path,
                                  (line, int(value.get("end", line))))

    def add_function(self, name, scope, is_local, is_macro, path, lines):
        tokens = self.tokens[path]
        head = next((i for i, t in enumerate(tokens[:-1]) if t.line >= lines[0] and t.text == name and
                     tokens[i + 1].text == "(" and tokens[i + 1].match), None)
        if head is None or tokens[head].line > lines[1]:
            return
        close = tokens[head + 1].match
        if scope == name and close - head < 8 and any(t.text == name for t in tokens[head + 2:close]):
            return  # a copy or a move: the value stays what it is
        last = close + 1
        while last < len(tokens) and tokens[last].line <= lines[1]:
            last += 1
        self.functions[name].append(Function(name, scope, is_local, is_macro, path, lines,
                                             parameter_names(tokens, head + 2, close), head,
                                             (0, 0) if is_macro else (close + 1, last)))

    def holders(self, value_type):
        """{class: members that lead from an object of it to its value of that type}"""
        paths, more = {value_type: ()} if value_type else {}, True
        while more:
            found = {c: (m,) + paths[t] for c, m, t in self.members if c and t in paths and c not in paths}
            paths.update(found)
            more = bool(found)
        paths.pop(value_type, None)
        return paths

    def sees(self, unit):
        """{unit: how many includes away} of all that `unit` includes, directly or not."""
        if unit not in self.seen_from:
            seen, edge, far = {unit: 0}, [unit], 0
            while edge:
                far += 1
                edge = sorted({v for u in edge for v in self.includes[u]} - set(seen))
                seen.update((v, far) for v in edge)
            self.seen_from[unit] = seen
        return self.seen_from[unit]

    def start(self, where):
        """(function, parameter, members) of [FILE:]FUNCTION:PARAM[.MEMBER...]; None where the tree has none."""
        *path, name, value = where.split(":")
        scope, _, name = name.rpartition(".")
        param, *members = value.split(".")
        for f in self.functions.get(name, ()):
            if (not path or f.path == path[0]) and f.scope == (scope or f.scope) and param in f.params:
                return f, param, tuple(members)
        return None


class Walk:
    """One journey. `path` has (depth, function, parameter) of each function entered.

    Carriers are a dict from a name to the members that lead from it to the value: () where it is the value.
    """

    def __init__(self, tree, value_type=None):
        self.tree, self.path, self.known, self.depth = tree, [], set(), 0
        self.holders = tree.holders(value_type)

    def enter(self, f, carriers):
        first = next(iter(carriers.items()))
        is_small = f.lines <= SMALL_LINES and not f.is_macro
        is_known = (f, first) in self.known
        if is_known and is_small:
            return
        self.path.append((self.depth, f, first[0]))
        if is_known:
            return
        self.known.add((f, first))
        entered = len(self.path)
        self.depth += 1
        self.follow(f, dict(carriers))
        self.depth -= 1
        if is_small and len(self.path) == entered and self.depth > 0:
            self.path.pop()

    def follow(self, f, carriers):
        tokens, (first, last) = self.tree.tokens[f.path], f.body
        lambdas = {tokens[k - 1].text for k in range(first + 1, last - 1)
                   if tokens[k].text == "=" and tokens[k + 1].text == "["}
        later = []  # (index, {name: members}): carriers from there on, behind the expression that sets them
        for i in range(first, last):
            while later and later[0][0] <= i:
                carriers.update(later.pop(0)[1])
            text = tokens[i].text
            if NAME.match(text) and text not in WORDS:
                self.at_name(f, i, last, carriers, lambdas)
                if tokens[i - 1].text in self.holders and tokens[i + 1].text in ("{", "(") and tokens[i + 1].match:
                    end = tokens[i + 1].match
                    if self.names_carrier(tokens, i + 2, end, carriers):
                        later.append((end, {text: self.holders[tokens[i - 1].text]}))
                        later.sort(key=lambda entry: entry[0])
            elif text == "=" or (text == ":" and self.is_in_range_for(tokens, i)):
                later += self.set_here(tokens, i, last, carriers)
                later.sort(key=lambda entry: entry[0])

    @staticmethod
    def is_in_range_for(tokens, i):
        k = i - 1
        while k > 0 and tokens[k].text not in ("(", ";", "{", "}"):
            k -= 1
        return k > 0 and tokens[k].text == "(" and tokens[k - 1].text == "for"

    @staticmethod
    def chain(tokens, k):
        """The members named behind the name at k, and the index behind them; None where a method is called."""
        members = []
        while tokens[k + 1].text in (".", "->") and NAME.match(tokens[k + 2].text):
            k += 2
            members.append(tokens[k].text)
        return (None if members and tokens[k + 1].text == "(" else tuple(members)), k + 1

    def value_in(self, tokens, a, b, carriers):
        """The members from the expression in [a, b) to the value, () where it is the value; None: it has none."""
        whole = None
        for k in range(a, b):
            if tokens[k].text not in carriers or tokens[k - 1].text in (".", "->", "::"):
                continue
            wanted = carriers[tokens[k].text]
            members, end = self.chain(tokens, k)
            if members is None:
                continue
            if members[:len(wanted)] == wanted:
                return ()
            around = [t.text for t in tokens[a:k] + tokens[end:b]]
            if wanted[:len(members)] == members and set(around) <= {"*", "&", "std", "::", "move", "(", ")"}:
                whole = wanted[len(members):]
        return whole

    @staticmethod
    def names_carrier(tokens, a, b, carriers):
        return any(t.text in carriers and tokens[k - 1].text not in (".", "->", "::")
                   for k, t in enumerate(tokens[a:b], a))

    def set_here(self, tokens, i, last, carriers):
        """[(index, {name: members})] of what the = or the loop's : at i makes a carrier."""
        if tokens[i + 1].text == "[":
            return []  # a lambda: its body is read where it stands
        end = end_of_expression(tokens, i + 1, last, (")",) if tokens[i].text == ":" else (";", ",", ")", "}", "]"))
        names = []
        if tokens[i - 1].text == "]" and tokens[i - 1].match:
            bracket = tokens[i - 1].match
            if tokens[bracket - 1].text in ("auto", "&", "&&"):  # else an element: the whole is not set
                names = [t.text for t in tokens[bracket:i] if NAME.match(t.text)]
        elif NAME.match(tokens[i - 1].text) and tokens[i - 2].text not in (".", "->", "["):
            names = [tokens[i - 1].text]
        members = self.value_in(tokens, i + 1, end, carriers) if names else None
        if members is None and names and tokens[i - 2].text in self.holders:
            if self.names_carrier(tokens, i + 1, end, carriers):
                members = self.holders[tokens[i - 2].text]
        return [] if members is None else [(end, dict.fromkeys(names, members))]

    def at_name(self, f, i, last, carriers, lambdas):
        tokens = self.tree.tokens[f.path]
        k = i + 1
        if k < last and tokens[k].text == "<":
            k = (end_of_template(tokens, k, last) or i) + 1
        if k >= last or tokens[k].text not in ("(", "{") or not tokens[k].match or tokens[k].match >= last:
            return
        callees = self.callees(f, i, lambdas)
        before = tokens[i - 1].text
        if (not callees and NAME.match(before)) or before in (">", "&"):
            if before in self.tree.classes:  # `Type name(...)`
                callees = [g for g in self.callees(f, i - 1, lambdas) if g.scope == g.name]
        if callees:
            self.call(f, callees, k, carriers)

    def callees(self, f, i, lambdas):
        """The definitions that the name at i may mean when it is called in f."""
        tokens, name = self.tree.tokens[f.path], self.tree.tokens[f.path][i].text
        before, found = tokens[i - 1].text, self.tree.functions.get(name, ())
        if before in (".", "->"):
            holder = self.class_of(f, i - 2)
            found = [g for g in found if g.scope and g.scope == holder]
        elif before == "::":
            holder = tokens[i - 2].text
            if holder in LIBRARIES:
                return []
            found = [g for g in found if (g.scope == holder if holder in self.tree.classes
                                          else g.scope in ("", name))]
        elif name in lambdas:
            return []
        else:
            found = [g for g in found if g.scope in ("", name, f.scope)]
        units, here = self.tree.units, self.tree.units[f.path]
        seen = self.tree.sees(here)
        found = [g for g in found if units[g.path] in seen and (not g.is_local or units[g.path] == here)]
        if any(g.scope == name for g in found):  # a constructor: of the nearest class of that name
            nearest = min(seen[u] for u in self.tree.classes[name] if u in seen)
            found = [g for g in found if g.scope != name or seen[units[g.path]] <= nearest]
        return found

    def class_of(self, f, i):
        """The class of the object named at i: of its nearest declaration before, or else of one in this unit."""
        name = self.tree.tokens[f.path][i].text
        spans = [(self.tree.tokens[f.path], i - 1, f.head)]
        for path in self.tree.files[self.tree.units[f.path]]:
            spans.append((self.tree.tokens[path], len(self.tree.tokens[path]) - 1, 0))
        for tokens, newest, oldest in spans:
            for k in range(newest, oldest, -1):
                if tokens[k].text == name and tokens[k + 1].text in ("(", "{", ";", "=", ",", ")", "["):
                    t = k - 1
                    while tokens[t].text in ("&", "*", "const", ">"):
                        t -= 1
                    if tokens[t].text in self.tree.classes:
                        return tokens[t].text
        return None

    def call(self, f, callees, k, carriers):
        tokens = self.tree.tokens[f.path]
        spans = split_at_commas(tokens, k + 1, tokens[k].match)
        passed = {n: self.value_in(tokens, a, b, carriers) for n, (a, b) in enumerate(spans)}
        passed = {n: members for n, members in passed.items() if members is not None}
        if not passed:
            return
        seen = self.tree.sees(self.tree.units[f.path])
        g = min(callees, key=lambda g: (len(g.params) < len(spans) and "" not in g.params,
                                        seen[self.tree.units[g.path]], abs(len(g.params) - len(spans))))
        names = {g.params[n]: members for n, members in passed.items() if n < len(g.params) and g.params[n]}
        if names and not MESSAGE.search(g.name):
            self.enter(g, names)

    def start(self, f, param, members):
        if (f, (param, members)) not in self.known:
            self.enter(f, {param: members})

    def stays(self):
        """[(unit, [(depth, function, parameter)])]"""
        stays = []
        for step in self.path:
            unit = self.tree.units[step[1].path]
            if not stays or stays[-1][0] != unit:
                stays.append((unit, []))
            stays[-1][1].append(step)
        return stays


def show(tree, verbose, title, starts, value_type=None):
    """Prints a journey, a row of JOURNEYS. Returns whether every start is in the tree."""
    walk, found = Walk(tree, value_type), []
    for spellings in starts:
        at = next((s for s in map(tree.start, spellings) if s), None)
        if at:
            walk.start(*at)
            found.append(f"{at[0].path}:{at[0].title}:{'.'.join((at[1],) + at[2])}")
        else:
            print(f"{title}: not in this tree: {' or '.join(spellings)}", file=sys.stderr)
    if not found:
        return False
    stays = walk.stays()
    files = len({unit for unit, _ in stays})
    print(f"{title}\n  {files} files entered, {len(stays) - files} returns, {len(stays)} stays")
    for start in found:
        print(f"  from {start}")
    visits = defaultdict(int)
    for n, (unit, steps) in enumerate(stays if verbose else (), 1):
        visits[unit] += 1
        visit = f"  (visit {visits[unit]})" if visits[unit] > 1 else ""
        print(f"  {n:4d}  {unit}{visit}")
        for depth, f, param in steps:
            print(f"        {'  ' * min(depth, 20)}{f.title} as {param}  {f.path}:{f.line}")
    return len(found) == len(starts)


def main():
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("journeys", nargs="*", metavar="JOURNEY", help=", ".join(JOURNEYS))
    parser.add_argument("--tree", default=Path(__file__).resolve().parent.parent, help="the checkout; default: this")
    parser.add_argument("--from", dest="start", action="append", metavar="[FILE:]FUNCTION:PARAM[.MEMBER]",
                        help="one journey from here; again: it goes on from there")
    parser.add_argument("-v", "--verbose", action="store_true", help="the path as well")
    args = parser.parse_args()
    unknown = [name for name in args.journeys if name not in JOURNEYS]
    if unknown:
        parser.error(f"no journey {unknown[0]}; there are: {', '.join(JOURNEYS)}")
    wanted = [JOURNEYS[name] for name in args.journeys or ([] if args.start else JOURNEYS)]
    if args.start:
        wanted.append((args.start[0], [[start] for start in args.start]))
    tree = Tree(args.tree)
    return 0 if all([show(tree, args.verbose, *journey) for journey in wanted]) else 1


if __name__ == "__main__":
    sys.exit(main())
