//! Answers that servers really gave (`recorded.txt`), whole, cut off and changed.

use proptest::prelude::*;

use super::*;

const RECORDED: &str = include_str!("../recorded.txt");

/// What was asked for, the version, whether it was done, and the answer.
fn recorded() -> Vec<(&'static str, &'static str, bool, Vec<u8>)> {
    let lines = RECORDED.lines().filter(|line| !line.starts_with('#'));
    let digits = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    lines
        .map(|line| {
            let [operation, version, outcome, _server, hex] =
                line.split(' ').collect::<Vec<_>>().try_into().unwrap();
            (operation, version, outcome == "done", hex.as_bytes().chunks(2).map(digits).collect())
        })
        .collect()
}

#[test]
fn every_answer_of_a_real_server_is_read() {
    let all = recorded();
    assert!(all.len() > 40, "{}", all.len());
    for (operation, version, done, bytes) in all {
        let answer = Answer::decode(&bytes).unwrap_or_else(|error| panic!("{operation} {version}: {error}"));
        let (major, minor) = answer.version;
        assert_eq!(format!("{major}.{minor}"), version);
        assert_eq!(matches!(answer.outcome, Outcome::Done(_)), done, "{operation}");
        assert_eq!(*Item::decode(&bytes).unwrap().encode(), bytes, "{operation} {version}");
    }
}

#[test]
fn every_answer_that_is_cut_off_is_refused() {
    for (operation, _, _, bytes) in recorded() {
        for len in 0..bytes.len() {
            assert!(Answer::decode(&bytes[..len]).is_err(), "{operation} {len}");
        }
    }
}

/// Whether it is read depends on the bit; what is read is written again.
#[test]
fn no_changed_bit_of_an_answer_does_harm() {
    let (mut read, mut refused) = (0, 0);
    for (_, _, _, bytes) in recorded() {
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            match Item::decode(&changed) {
                Ok(item) => assert!(*item.encode() == changed),
                Err(_) => assert!(Answer::decode(&changed).is_err()),
            }
            match Answer::decode(&changed) {
                Ok(_) => read += 1,
                Err(_) => refused += 1,
            }
        }
    }
    assert!(read > 1000 && refused > 1000, "{read} read, {refused} refused");
}

#[test]
fn a_request_is_the_bytes_of_the_specification() {
    let bytes = request(Version::V1_2, Operation::Get, |writer| writer.text(tags::UNIQUE_IDENTIFIER, "1"));
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = [
        "42007801 00000070",
        "42007701 00000038",
        "42006901 00000020",
        "42006a02 00000004 0000000100000000",
        "42006b02 00000004 0000000200000000",
        "42000d02 00000004 0000000100000000",
        "42000f01 00000028",
        "42005c05 00000004 0000000a00000000",
        "42007901 00000010",
        "42009407 00000001 3100000000000000",
    ];
    assert_eq!(hex, expected.concat().replace(' ', ""));
}

#[test]
fn only_versions_that_both_speak_are_listed() {
    let list = |numbers: &[(i32, i32)]| {
        let mut writer = Writer::new();
        writer.structure(tags::RESPONSE_PAYLOAD, |writer| {
            for (major, minor) in numbers {
                writer.structure(tags::PROTOCOL_VERSION, |writer| {
                    writer.integer(tags::PROTOCOL_VERSION_MAJOR, *major);
                    writer.integer(tags::PROTOCOL_VERSION_MINOR, *minor);
                });
            }
        });
        Version::listed(&Item::decode(&writer.finish()).unwrap())
    };
    assert_eq!(list(&[(1, 0), (1, 2), (2, 1), (1, 4), (-1, 7)]), [Version::V1_4, Version::V1_2]);
    assert_eq!(list(&[(1, 2), (2, 0), (2, 0)]), [Version::V2_0, Version::V1_2]);
    assert_eq!(list(&[]), []);
    assert_eq!(Version::parse("2.0"), Some(Version::V2_0));
    assert_eq!(Version::parse("2"), None);
}

proptest! {
    #[test]
    fn any_bytes_in_place_of_an_answer_are_refused_quietly(
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        noise in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let all = recorded();
        let (_, _, _, mut bytes) = all[which.index(all.len())].clone();
        let at = at.index(bytes.len());
        let end = (at + noise.len()).min(bytes.len());
        bytes.splice(at..end, noise);
        let _ = Answer::decode(&bytes);
    }
}
