//! `strftime`, for the templates that write the date into a conversation.

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// A moment in English and UTC.
struct Moment {
    seconds: i64,
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
    /// From Sunday.
    weekday: i64,
    /// From 0.
    day_of_year: i64,
}

impl Moment {
    fn at(seconds: i64) -> Self {
        let days = seconds.div_euclid(86_400);
        let of_day = seconds.rem_euclid(86_400);
        let (year, month, day) = civil_date(days);
        Self {
            seconds,
            year,
            month,
            day,
            hour: of_day / 3600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
            weekday: (days + 4).rem_euclid(7),
            day_of_year: days - days_from_civil(year, 1, 1),
        }
    }

    /// The week by ISO 8601, and the year that it belongs to.
    fn iso_week(&self) -> (i64, i64) {
        let from_monday = (self.weekday + 6) % 7;
        let week = (self.day_of_year - from_monday + 10) / 7;
        let weeks = |year: i64| {
            let first = (days_from_civil(year, 1, 1) + 3).rem_euclid(7);
            let leap = days_from_civil(year + 1, 1, 1) - days_from_civil(year, 1, 1) == 366;
            if first == 3 || (first == 2 && leap) { 53 } else { 52 }
        };
        match week {
            0 => (self.year - 1, weeks(self.year - 1)),
            week if week > weeks(self.year) => (self.year + 1, 1),
            week => (self.year, week),
        }
    }
}

/// `datetime.strftime` of a time without a zone, with the C library's flags and widths; `seconds` after 1970.
pub(crate) fn strftime(format: &str, seconds: i64) -> Result<String, String> {
    let moment = Moment::at(seconds);
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let body = rest[1..].trim_start_matches(['_', '-', '0', '^', '#']);
        let flags = &rest[1..rest.len() - body.len()];
        let code = body.trim_start_matches(|c: char| c.is_ascii_digit());
        let digits = &body[..body.len() - code.len()];
        let width: usize = if digits.is_empty() { 0 } else { digits.parse().unwrap_or(usize::MAX) };
        if width > 1000 {
            return Err(format!("strftime_now: a width of {digits} is not supported"));
        }
        let Some(c) = code.chars().next() else {
            out.push_str(rest);
            return Ok(out);
        };
        let after = &code[c.len_utf8()..];
        match field(&moment, c, flags, width) {
            Some(text) => out.push_str(&text),
            None if matches!(c, 'E' | 'O' | '+' | ':') => {
                return Err(format!("strftime_now does not know `%{c}`"));
            }
            // What is no code stays as it is.
            None => out.push_str(&rest[..rest.len() - after.len()]),
        }
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

fn field(moment: &Moment, code: char, flags: &str, width: usize) -> Option<String> {
    let Moment { year, month, day, hour, minute, second, weekday, day_of_year, .. } = *moment;
    let hour12 = (hour + 11) % 12 + 1;
    let number = |value: i64, digits: usize, fill: char| {
        let (mut fill, mut digits) = (fill, digits);
        for flag in flags.chars() {
            match flag {
                '_' => fill = ' ',
                '0' => fill = '0',
                '-' => digits = 0,
                _ => {}
            }
        }
        let digits = if width > 0 { width } else { digits };
        let text = value.to_string();
        let filled: String = std::iter::repeat_n(fill, digits.saturating_sub(text.len())).collect();
        filled + &text
    };
    let text = |text: &str| {
        let mut text = text.to_owned();
        if flags.contains('^') || (flags.contains('#') && code != 'p' && code != 'Z') {
            text = text.to_uppercase();
        } else if flags.contains('#') {
            text = text.to_lowercase();
        }
        let fill = if flags.ends_with('0') { '0' } else { ' ' };
        let filled: String = std::iter::repeat_n(fill, width.saturating_sub(text.len())).collect();
        filled + &text
    };
    let whole = |format: &str| strftime(format, moment.seconds).ok().map(|whole| text(&whole));
    let (iso_year, iso_week) = moment.iso_week();
    let month_name = MONTHS[(month - 1).rem_euclid(12) as usize];
    let day_name = DAYS[weekday as usize];
    let half = if hour < 12 { "AM" } else { "PM" };
    Some(match code {
        // Unlike all others, the year is not filled up.
        'Y' => number(year, 0, '0'),
        'y' => number(year.rem_euclid(100), 2, '0'),
        'C' => number(year.div_euclid(100), 2, '0'),
        'G' => number(iso_year, 0, '0'),
        'g' => number(iso_year.rem_euclid(100), 2, '0'),
        'V' => number(iso_week, 2, '0'),
        'U' => number((day_of_year + 7 - weekday) / 7, 2, '0'),
        'W' => number((day_of_year + 7 - (weekday + 6) % 7) / 7, 2, '0'),
        'm' => number(month, 2, '0'),
        'd' => number(day, 2, '0'),
        'e' => number(day, 2, ' '),
        'H' => number(hour, 2, '0'),
        'k' => number(hour, 2, ' '),
        'I' => number(hour12, 2, '0'),
        'l' => number(hour12, 2, ' '),
        'M' => number(minute, 2, '0'),
        'S' => number(second, 2, '0'),
        'j' => number(day_of_year + 1, 3, '0'),
        'w' => number(weekday, 1, '0'),
        'u' => number((weekday + 6) % 7 + 1, 1, '0'),
        's' => number(moment.seconds, 1, '0'),
        'B' => text(month_name),
        'b' | 'h' => text(&month_name[..3]),
        'A' => text(day_name),
        'a' => text(&day_name[..3]),
        'p' => text(half),
        'P' => text(&half.to_lowercase()),
        'F' => whole("%Y-%m-%d")?,
        'D' | 'x' => whole("%m/%d/%y")?,
        'T' | 'X' => whole("%H:%M:%S")?,
        'R' => whole("%H:%M")?,
        'r' => whole("%I:%M:%S %p")?,
        'c' => whole("%a %b %e %H:%M:%S %Y")?,
        'n' => text("\n"),
        't' => text("\t"),
        '%' => text("%"),
        // Python's own: microseconds, and a zone that the time does not have.
        'f' if flags.is_empty() && width == 0 => "000000".to_owned(),
        'z' | 'Z' if width == 0 => String::new(),
        _ => return None,
    })
}

/// Days after 1970-01-01 to year, month, day, in eras of 400 years that begin in March.
fn civil_date(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let shifted_month = (month + 9) % 12;
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let f = "%d %b %Y|%B %-d|%A %a|%H:%M:%S|%I %p|%j|%F|%%|%y";
        // 2024-07-26 13:05:09 UTC
        assert_eq!(
            strftime(f, 1_721_999_109).unwrap(),
            "26 Jul 2024|July 26|Friday Fri|13:05:09|01 PM|208|2024-07-26|%|24"
        );
        assert_eq!(strftime("%F %a", 951_782_400).unwrap(), "2000-02-29 Tue");
        assert_eq!(strftime("%F %a", -86_400).unwrap(), "1969-12-31 Wed");
        assert_eq!(strftime("%G-%V %U %W", 1_609_459_200).unwrap(), "2020-53 00 00");
        assert_eq!(strftime("%G-%V", 1_735_689_600).unwrap(), "2025-01");
        assert_eq!(strftime("%Q 50%", 0).unwrap(), "%Q 50%");
    }
}
