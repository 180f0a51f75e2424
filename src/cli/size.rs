//! Sizes as people write them, binary throughout.

use crate::volume::create::OverProvisioning;

const UNITS: [(&str, u32); 5] = [("K", 10), ("M", 20), ("G", 30), ("T", 40), ("P", 50)];

/// Reads `4096`, `512M`, `10G`, `1.5TiB`: a number and an optional binary unit, with or without `iB`.
///
/// # Errors
/// A sentence that says what is wrong and does not repeat `text`.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.strip_suffix("iB").unwrap_or(unit);
    let shift = match unit {
        "" | "B" => 0,
        unit => UNITS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(unit))
            .map(|(_, shift)| *shift)
            .ok_or_else(|| "units are K, M, G, T and P (binary)".to_owned())?,
    };
    let bad = || "not a size; examples: 4096, 512M, 10G, 1.5T".to_owned();
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u64 = whole.parse().map_err(|_| bad())?;
    let too_large = || "too large a size".to_owned();
    let mut bytes = whole.checked_shl(shift).filter(|bytes| bytes >> shift == whole).ok_or_else(too_large)?;
    if !fraction.is_empty() {
        let scale =
            10u64.checked_pow(u32::try_from(fraction.len()).unwrap_or(u32::MAX)).filter(|s| *s <= 1_000_000);
        let parts: u64 = fraction.parse().map_err(|_| bad())?;
        bytes = bytes.checked_add((parts << shift.min(44)) / scale.ok_or_else(bad)?).ok_or_else(too_large)?;
    }
    Ok(bytes)
}

/// A size that a volume is to get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NewSize {
    Bytes(u64),
    /// As large as its backend is.
    Max,
}

/// Reads a size as [`parse_size`] does, or `max`.
///
/// # Errors
/// As [`parse_size`].
pub(super) fn parse_new_size(text: &str) -> Result<NewSize, String> {
    if text == "max" { Ok(NewSize::Max) } else { parse_size(text).map(NewSize::Bytes) }
}

/// Reads `1.25`: how much room data has, in sizes of the volume.
///
/// # Errors
/// As [`parse_size`].
pub(super) fn parse_over_provisioning(text: &str) -> Result<OverProvisioning, String> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.len() <= 2 && part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        return Err("not a factor; examples: 1.25, 1.5, 2".to_owned());
    }
    let hundredths = format!("{whole}{fraction:0<2}").parse().map_err(|_| "not a factor".to_owned())?;
    OverProvisioning::hundredths(hundredths).ok_or_else(|| "a factor from 1.15 to 4".to_owned())
}

/// Writes a size for people.
pub(super) fn show_size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_and_bounded() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("1.5GiB"), Ok(3 << 29));
        assert_eq!(parse_size("16t"), Ok(16 << 40));
        for bad in ["", "G", "-1", "1X", "99999999999999P", "1.0000001G", "..", "1e9"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_factor_has_two_places_at_most_and_is_from_1_15_to_4() {
        for (text, hundredths) in [("1.25", 125), ("1.5", 150), ("2", 200), ("1.15", 115), ("4.00", 400)] {
            assert_eq!(
                parse_over_provisioning(text).ok(),
                OverProvisioning::hundredths(hundredths),
                "{text}"
            );
        }
        for bad in ["", ".5", "1.14", "4.01", "1.255", "-2", "1.2x", "+1.5", "1,25", "9999"] {
            assert!(parse_over_provisioning(bad).is_err(), "{bad}");
        }
    }
}
