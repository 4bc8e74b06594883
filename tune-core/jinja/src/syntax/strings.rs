//! String literals: Python's `unicode-escape`.

pub(super) fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(c) = rest.chars().next() else {
            return Err("\\ at end of string".to_owned());
        };
        rest = &rest[c.len_utf8()..];
        match c {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(c),
            'a' => out.push('\x07'),
            'b' => out.push('\x08'),
            'f' => out.push('\x0c'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\x0b'),
            '0'..='7' => {
                let more = rest.bytes().take(2).take_while(|b| (b'0'..=b'7').contains(b)).count();
                let digits = format!("{c}{}", &rest[..more]);
                rest = &rest[more..];
                out.push(character(&digits, 8)?);
            }
            'x' | 'u' | 'U' => {
                let len = match c {
                    'x' => 2,
                    'u' => 4,
                    _ => 8,
                };
                let digits = rest.get(..len).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
                let digits = digits.ok_or_else(|| format!("truncated \\{c} escape"))?;
                rest = &rest[len..];
                let pair = (c == 'u').then(|| surrogates(digits, rest)).flatten();
                match pair {
                    Some(c) => {
                        out.push(c);
                        rest = &rest[6..];
                    }
                    None => out.push(character(digits, 16)?),
                }
            }
            'N' => return Err("characters by name (`\\N{...}`) are not supported".to_owned()),
            // Characters beyond ASCII were escapes themselves when Python met the backslash.
            c if c as u32 > 0xffff => out.push_str(&format!("\\U{:08x}", c as u32)),
            c if c as u32 > 0xff => out.push_str(&format!("\\u{:04x}", c as u32)),
            c if !c.is_ascii() => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => {
                out.push('\\');
                out.push(c);
            }
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn character(digits: &str, radix: u32) -> Result<char, String> {
    let code = u32::from_str_radix(digits, radix).map_err(|e| e.to_string())?;
    char::from_u32(code).ok_or_else(|| format!("U+{code:04X} is no character of its own"))
}

/// The character of a high and a low surrogate.
fn surrogates(high: &str, rest: &str) -> Option<char> {
    let high = u16::from_str_radix(high, 16).ok()?;
    let low = u16::from_str_radix(rest.strip_prefix("\\u")?.get(..4)?, 16).ok()?;
    char::decode_utf16([high, low]).next()?.ok().filter(|c| *c as u32 > 0xffff)
}
