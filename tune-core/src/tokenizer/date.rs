//! `strftime`, for the templates that write the date into a conversation.

use std::fmt::Write;

/// `datetime.strftime` in English and UTC, `seconds` after 1970.
pub(super) fn strftime(format: &str, seconds: i64) -> Result<String, String> {
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
    let days = seconds.div_euclid(86_400);
    let second_of_day = seconds.rem_euclid(86_400);
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    let (year, month, day) = civil_date(days);
    let month_name = MONTHS[(month - 1).rem_euclid(12) as usize];
    let weekday = (days + 4).rem_euclid(7);
    let day_name = DAYS[weekday as usize];
    let hour12 = (hour + 11) % 12 + 1;
    let day_of_year = days - days_from_civil(year, 1, 1) + 1;

    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut code = chars.next();
        // `%-d` drops the leading zero (an extension of the C library that templates use).
        let padded = code != Some('-');
        if !padded {
            code = chars.next();
        }
        let mut number = |value: i64, width: usize| {
            let width = if padded { width } else { 1 };
            let _ = write!(out, "{value:0width$}");
        };
        match code {
            Some('Y') => number(year, 4),
            Some('y') => number(year.rem_euclid(100), 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('H') => number(hour, 2),
            Some('I') => number(hour12, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('j') => number(day_of_year, 3),
            Some('w') => number(weekday, 1),
            Some('f') => number(0, 6),
            Some('B') => out.push_str(month_name),
            Some('b' | 'h') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('Z') => out.push_str("UTC"),
            Some('z') => out.push_str("+0000"),
            Some('F') => {
                let _ = write!(out, "{year:04}-{month:02}-{day:02}");
            }
            Some('D' | 'x') => {
                let _ = write!(out, "{month:02}/{day:02}/{:02}", year.rem_euclid(100));
            }
            Some('T' | 'X') => {
                let _ = write!(out, "{hour:02}:{minute:02}:{second:02}");
            }
            Some('R') => {
                let _ = write!(out, "{hour:02}:{minute:02}");
            }
            Some('%') => out.push('%'),
            other => {
                return Err(format!("strftime_now does not know `%{}`", other.map(String::from).unwrap_or_default()));
            }
        }
    }
    Ok(out)
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
        assert!(strftime("%Q", 0).unwrap_err().contains("%Q"));
        assert!(strftime("50%", 0).is_err());
    }
}
