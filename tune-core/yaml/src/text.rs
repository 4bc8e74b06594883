//! Text that a `const fn` can write: messages are the same, be they made by
//! the compiler or at run time.

/// Text of at most `N` bytes. What does not fit is left out, and `...` says so.
#[derive(Debug, Clone, Copy)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
    full: bool,
}

const CUT: &str = "...";

impl<const N: usize> Text<N> {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self { bytes: [0; N], len: 0, full: false }
    }

    /// What has been written.
    pub const fn as_str(&self) -> &str {
        match std::str::from_utf8(self.bytes.split_at(self.len).0) {
            Ok(text) => text,
            // Texts are cut between characters only.
            Err(_) => "",
        }
    }

    /// Whether nothing has been written.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds `text`.
    pub const fn push(&mut self, text: &str) {
        if self.full {
            return;
        }
        let bytes = text.as_bytes();
        let mut end = bytes.len();
        if self.len + end + CUT.len() > N {
            self.full = true;
            end = (N - self.len).saturating_sub(CUT.len());
            while !text.is_char_boundary(end) {
                end -= 1;
            }
        }
        self.copy(bytes, end);
        if self.full {
            self.copy(CUT.as_bytes(), CUT.len());
        }
    }

    const fn copy(&mut self, bytes: &[u8], count: usize) {
        let mut at = 0;
        while at < count && self.len < N {
            self.bytes[self.len] = bytes[at];
            self.len += 1;
            at += 1;
        }
    }

    /// Adds several texts.
    pub const fn push_all(&mut self, texts: &[&str]) {
        let mut at = 0;
        while at < texts.len() {
            self.push(texts[at]);
            at += 1;
        }
    }

    /// Adds `text` so many times.
    pub const fn repeat(&mut self, text: &str, times: usize) {
        let mut done = 0;
        while done < times && !self.full {
            self.push(text);
            done += 1;
        }
    }

    /// Adds a name in backticks.
    pub const fn name(&mut self, name: &str) {
        self.push_all(&["`", name, "`"]);
    }

    /// Adds the first words of what may be a whole file.
    pub const fn short(&mut self, text: &str) {
        let text = text.trim_ascii();
        let bytes = text.as_bytes();
        let (mut end, mut chars) = (0, 0);
        while end < bytes.len() && bytes[end] != b'\n' {
            if text.is_char_boundary(end) {
                if chars == 60 {
                    break;
                }
                chars += 1;
            }
            end += 1;
        }
        let (start, rest) = text.split_at(end);
        self.push(start.trim_ascii_end());
        if !rest.is_empty() {
            self.push(CUT);
        }
    }

    /// Adds a whole number.
    pub const fn int(&mut self, int: i128) {
        if int < 0 {
            self.push("-");
        }
        self.digits(int.unsigned_abs(), 0);
    }

    /// Adds a number in decimal, filled up with zeros to `least` digits.
    pub(crate) const fn digits(&mut self, number: u128, least: usize) {
        let mut digits = [b'0'; 40];
        let (mut at, mut rest) = (digits.len(), number);
        while rest > 0 || digits.len() - at < least || at == digits.len() {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        if let Ok(digits) = std::str::from_utf8(digits.split_at(at).1) {
            self.push(digits);
        }
    }
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> std::fmt::Display for Text<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_much_text_is_cut_between_characters() {
        let mut text = Text::<12>::new();
        text.push("üüü");
        text.push("üüü");
        text.push("never");
        assert_eq!(text.as_str(), "üüüü...");
        let mut text = Text::<12>::new();
        text.push("123456789");
        assert_eq!(text.as_str(), "123456789");
    }

    #[test]
    fn whole_numbers() {
        let mut text = Text::<64>::new();
        text.int(i128::MIN);
        assert_eq!(text.as_str(), i128::MIN.to_string());
    }

    #[test]
    fn the_first_words() {
        let short = |text: &str| {
            let mut out = Text::<512>::new();
            out.short(text);
            out.as_str().to_owned()
        };
        assert_eq!(short(" a b \n c"), "a b...");
        assert_eq!(short(&"ü".repeat(61)), format!("{}...", "ü".repeat(60)));
        assert_eq!(short(&"ü".repeat(60)), "ü".repeat(60));
    }
}
