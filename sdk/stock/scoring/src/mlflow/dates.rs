//! Dates, as far as they can be wrong: no graph takes a date, so that only the check of MLflow's types is left of them.
//!
//! Only ISO 8601 is known here. pandas also guesses at forms such as `01/31/2024`; those are refused.

/// What a date looks like. pandas wants all dates of a column to look like the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form {
    date: DateForm,
    /// What stands between date and time; none without a time.
    separator: Option<u8>,
    time_parts: usize,
    fraction: bool,
    pub(crate) zone: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DateForm {
    Year,
    Month,
    Day,
    Compact,
}

/// Whether `pd.to_datetime` and numpy take this text, and in which form it is written.
pub(crate) fn form(text: &str) -> Option<Form> {
    let text = text.trim();
    let split = text.find(['T', ' ']).unwrap_or(text.len());
    let (date, rest) = text.split_at(split);
    let date = date_form(date)?;
    let Some(separator) = rest.bytes().next() else {
        return Some(Form { date, separator: None, time_parts: 0, fraction: false, zone: false });
    };
    let (time, zone) = without_zone(rest.get(1..)?)?;
    let (clock, fraction) = time.split_once('.').map_or((time, None), |(clock, fraction)| (clock, Some(fraction)));
    let parts: Vec<&str> = clock.split(':').collect();
    let limits = [23, 59, 60];
    let valid = parts.len() <= limits.len()
        && parts.iter().zip(limits).all(|(part, max)| two_digits(part).is_some_and(|value| value <= max))
        && fraction.is_none_or(|digits| parts.len() == 3 && is_digits(digits) && digits.len() <= 9);
    let form = Form { date, separator: Some(separator), time_parts: parts.len(), fraction: fraction.is_some(), zone };
    (valid && date != DateForm::Year && date != DateForm::Month).then_some(form)
}

/// Whether numpy's `datetime64` takes this text: ISO 8601, a bare number as a year, or nothing for "not a time".
pub(crate) fn numpy_date(text: &str) -> bool {
    matches!(text, "" | "NaT" | "nat" | "NaN" | "today" | "now") || is_digits(text) || form(text).is_some()
}

fn date_form(date: &str) -> Option<DateForm> {
    let parts: Vec<&str> = date.split('-').collect();
    match parts.as_slice() {
        [year] if year.len() == 4 && is_digits(year) => Some(DateForm::Year),
        [day] if day.len() == 8 && is_digits(day) => {
            is_day(day.get(..4)?, day.get(4..6)?, day.get(6..)?).then_some(DateForm::Compact)
        }
        [year, month] => is_day(year, month, "01").then_some(DateForm::Month),
        [year, month, day] => is_day(year, month, day).then_some(DateForm::Day),
        _ => None,
    }
}

fn is_day(year: &str, month: &str, day: &str) -> bool {
    let year = year.parse::<u32>().ok().filter(|_| year.len() == 4 && is_digits(year));
    let (Some(year), Some(month), Some(day)) = (year, two_digits(month), two_digits(day)) else { return false };
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => 0,
    };
    (1..=days).contains(&day)
}

/// The time, and whether a zone (`Z`, `+02:00`) came after it.
fn without_zone(text: &str) -> Option<(&str, bool)> {
    if let Some(time) = text.strip_suffix('Z') {
        return Some((time, true));
    }
    let Some(sign) = text.find(['+', '-']) else { return Some((text, false)) };
    let (time, offset) = text.split_at(sign);
    let offset = offset.get(1..)?.replace(':', "");
    ((offset.len() == 4 || offset.len() == 2) && is_digits(&offset)).then_some((time, true))
}

fn two_digits(text: &str) -> Option<u32> {
    text.parse().ok().filter(|_| text.len() == 2 && is_digits(text))
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iso_dates_are_known_by_their_form() {
        assert_eq!(form("2024-01-31T10:00:00"), form("2024-02-29T23:59:59"));
        assert_ne!(form("2024-01-31"), form("2024-01-31T10:00"));
        assert_ne!(form("2024-01-31T10:00:00"), form("2024-01-31 10:00:00"));
        assert!(form("2024-01-31T10:00:00+02:00").is_some_and(|form| form.zone));
        for wrong in [
            "soon",
            "",
            "2024-02-30",
            "2023-02-29",
            "2024-13-01",
            "2024-01-31T25:00",
            "2024-1-1",
            "2024-01-31T",
            "2024-01-31T10:00:00+2",
            "2024-01T10:00",
            "é-01-01",
        ] {
            assert_eq!(form(wrong), None, "{wrong}");
        }
    }
}
