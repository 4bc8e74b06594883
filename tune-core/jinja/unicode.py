"""Write src/unicode.rs: what Python's string methods know of characters, where Rust's library knows otherwise.

usage: unicode.py
needs: Python 3.11 (the tables are those of its `unicodedata`)
"""
import pathlib

LAST = 0x110000


def chars():
    return (c for c in range(LAST) if not 0xD800 <= c < 0xE000)


def ranges(test):
    out, start, previous = [], None, None
    for c in chars():
        if test(chr(c)):
            if start is None or c != previous + 1 and not (previous == 0xD7FF and c == 0xE000):
                if start is not None:
                    out.append((start, previous))
                start = c
            previous = c
    if start is not None:
        out.append((start, previous))
    return out


def table(name, doc, test):
    pairs = ranges(test)
    lines, line = [], "   "
    for a, b in pairs:
        item = f" (0x{a:x}, 0x{b:x}),"
        if len(line) + len(item) > 118:
            lines.append(line)
            line = "   "
        line += item
    lines.append(line)
    return f"/// {doc}\n#[rustfmt::skip]\nconst {name}: [(u32, u32); {len(pairs)}] = [\n" + "\n".join(lines) + "\n];\n"


def mapping(name, doc, convert, default):
    pairs = [(chr(c), convert(chr(c))) for c in chars() if convert(chr(c)) != default(chr(c))]
    lines, line = [], "   "
    for a, b in pairs:
        text = ''.join('\\u{%x}' % ord(x) for x in b)
        item = f' (0x{ord(a):x}, "{text}"),'
        if len(line) + len(item) > 118:
            lines.append(line)
            line = "   "
        line += item
    lines.append(line)
    return f"/// {doc}\n#[rustfmt::skip]\nconst {name}: [(u32, &str); {len(pairs)}] = [\n" + "\n".join(lines) + "\n];\n"


HEAD = '''//! What Python's string methods know of characters, where Rust's library knows otherwise.
//! Made by `unicode.py`.

pub(crate) fn is_printable(c: char) -> bool {
    !is_in(&UNPRINTABLE, c)
}

/// Whether a character is a letter: combining marks are none.
pub(crate) fn is_alpha(c: char) -> bool {
    if c.is_ascii() { c.is_ascii_alphabetic() } else { is_in(&LETTERS, c) }
}

pub(crate) fn is_decimal(c: char) -> bool {
    if c.is_ascii() { c.is_ascii_digit() } else { is_in(&DECIMALS, c) }
}

pub(crate) fn is_digit(c: char) -> bool {
    is_decimal(c) || is_in(&DIGITS, c)
}

pub(crate) fn is_numeric(c: char) -> bool {
    is_digit(c) || is_in(&NUMERICS, c)
}

pub(crate) fn is_alnum(c: char) -> bool {
    is_alpha(c) || is_numeric(c)
}

/// A character at the beginning of a title.
pub(crate) fn push_title(out: &mut String, c: char) {
    match mapped(&TITLES, c) {
        Some(title) => out.push_str(title),
        None => out.extend(c.to_uppercase()),
    }
}

/// A character for comparisons that ignore case.
pub(crate) fn push_folded(out: &mut String, c: char) {
    match mapped(&FOLDED, c) {
        Some(folded) => out.push_str(folded),
        None => out.extend(c.to_lowercase()),
    }
}

fn is_in(ranges: &[(u32, u32)], c: char) -> bool {
    let c = c as u32;
    let at = ranges.partition_point(|&(_, last)| last < c);
    ranges.get(at).is_some_and(|&(first, _)| first <= c)
}

fn mapped(table: &[(u32, &'static str)], c: char) -> Option<&'static str> {
    table.binary_search_by_key(&(c as u32), |&(c, _)| c).ok().map(|at| table[at].1)
}
'''

tables = [
    table("UNPRINTABLE", "Not `str.isprintable`.", lambda c: not c.isprintable()),
    table("LETTERS", "`str.isalpha`, beyond ASCII.", lambda c: c.isalpha() and not c.isascii()),
    table("DECIMALS", "`str.isdecimal`, beyond ASCII.", lambda c: c.isdecimal() and not c.isascii()),
    table("DIGITS", "`str.isdigit`, and no decimal.", lambda c: c.isdigit() and not c.isdecimal()),
    table("NUMERICS", "`str.isnumeric`, and no digit.", lambda c: c.isnumeric() and not c.isdigit()),
    mapping("TITLES", "`str.title`, where it is not `str.upper`.", str.title, str.upper),
    mapping("FOLDED", "`str.casefold`, where it is not `str.lower`.", str.casefold, str.lower),
]
path = pathlib.Path(__file__).parent / "src" / "unicode.rs"
path.write_text(HEAD + "".join("\n" + t for t in tables))
