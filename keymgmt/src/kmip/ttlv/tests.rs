//! The codec against the examples of the specification, and against whatever bytes there are.

use proptest::prelude::*;

use super::*;

fn bytes(hex: &str) -> Vec<u8> {
    let hex: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    hex.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// KMIP Specification 1.4 §9.1.2.
#[test]
fn the_examples_of_the_specification_are_read_and_written() {
    let big = bytes("0000000003FD35EB6BC2DF4618080000");
    let structure = Value::Structure(vec![
        Item { tag: 0x42_0004, value: Value::Enumeration(254) },
        Item { tag: 0x42_0005, value: Value::Integer(255) },
    ]);
    for (hex, value) in [
        ("420020 02 00000004 0000000800000000", Value::Integer(8)),
        ("420020 03 00000008 01B69B4BA5749200", Value::LongInteger(123_456_789_000_000_000)),
        ("420020 04 00000010 0000000003FD35EB6BC2DF4618080000", Value::BigInteger(&big)),
        ("420020 05 00000004 000000FF00000000", Value::Enumeration(255)),
        ("420020 06 00000008 0000000000000001", Value::Boolean(true)),
        ("420020 07 0000000B 48656C6C6F20576F726C640000000000", Value::Text("Hello World")),
        ("420020 08 00000003 0102030000000000", Value::Bytes(&[1, 2, 3])),
        ("420020 09 00000008 0000000047DA67F8", Value::DateTime(1_205_495_800)),
        ("420020 0A 00000004 000D2F0000000000", Value::Interval(864_000)),
        (
            "420020 01 00000020 420004 05 00000004 000000FE00000000 420005 02 00000004 000000FF00000000",
            structure,
        ),
    ] {
        let bytes = bytes(hex);
        let item = Item::decode(&bytes).unwrap();
        assert!(item == Item { tag: 0x42_0020, value }, "{hex}");
        assert_eq!(*item.encode(), bytes, "{hex}");
    }
}

fn error(hex: &str) -> TtlvError {
    Item::decode(&bytes(hex)).err().unwrap()
}

#[test]
fn what_is_no_message_is_told_for_what_it_is() {
    for (hex, expected) in [
        ("", TtlvError::Short),
        ("42002002000000", TtlvError::Short),
        ("420020 02 00000004", TtlvError::Short),
        ("420020 02 00000004 00000008", TtlvError::Short),
        ("420020 08 FFFFFFFF 0000000000000000", TtlvError::Short),
        ("420020 01 00000010 420004 05 0000000C 000000FE00000000", TtlvError::Short),
        ("420020 02 00000004 0000000800000000 00", TtlvError::Trailing),
        ("430020 02 00000004 0000000800000000", TtlvError::Tag),
        ("420020 00 00000004 0000000800000000", TtlvError::Type),
        ("420020 0C 00000004 0000000800000000", TtlvError::Type),
        ("420020 02 00000008 0000000800000000", TtlvError::Length),
        ("420020 03 00000004 0000000800000000", TtlvError::Length),
        ("420020 04 00000004 0000000800000000", TtlvError::Length),
        ("420020 04 00000000", TtlvError::Length),
        ("420020 05 00000000", TtlvError::Length),
        ("420020 02 00000004 0000000800000001", TtlvError::Spelling),
        ("420020 06 00000008 0000000000000002", TtlvError::Spelling),
        ("420020 06 00000008 0100000000000000", TtlvError::Spelling),
        ("420020 07 00000002 C328000000000000", TtlvError::Spelling),
    ] {
        assert_eq!(error(hex), expected, "{hex}");
    }
    assert_eq!(Item::decode(&vec![0; MESSAGE_BYTES_MAX + 1]).err(), Some(TtlvError::Long));
}

fn nested(depth: usize) -> Vec<u8> {
    (0..depth).fold(Vec::new(), |inner, _| {
        let len = u32::try_from(inner.len()).unwrap();
        [bytes("42002001").as_slice(), &len.to_be_bytes(), &inner].concat()
    })
}

#[test]
fn nesting_has_an_end() {
    assert!(Item::decode(&nested(DEPTH_MAX)).is_ok());
    for depth in [DEPTH_MAX + 1, MESSAGE_BYTES_MAX / HEADER_LEN] {
        assert_eq!(Item::decode(&nested(depth)).err(), Some(TtlvError::Deep), "{depth}");
    }
}

#[test]
fn of_several_values_of_a_tag_none_is_the_one() {
    let mut writer = Writer::new();
    writer.structure(0x42_0001, |writer| {
        writer.text(0x42_0002, "a");
        writer.text(0x42_0002, "b");
        writer.bytes(0x42_0003, b"c");
    });
    let bytes = writer.finish();
    let item = Item::decode(&bytes).unwrap();
    assert_eq!(item.text(0x42_0002), None);
    assert_eq!(item.bytes(0x42_0003), Some(b"c".as_slice()));
    assert_eq!(item.text(0x42_0003), None, "of another type");
    assert_eq!(item.all(0x42_0002).count(), 2);
}

fn any_value() -> impl Strategy<Value = Vec<u8>> {
    let leaf =
        (0_u32..0x200, 2_u8..12, prop::collection::vec(any::<u8>(), 0..24)).prop_map(|(tag, kind, bytes)| {
            let mut writer = Writer::new();
            let tag = 0x42_0000 | tag;
            let number = bytes.iter().fold(0_i64, |number, byte| number << 8 | i64::from(*byte));
            match kind {
                2 => writer.integer(tag, bytes.len().try_into().unwrap()),
                3 | 11 => writer.put(tag, kind, &number.to_be_bytes()),
                4 => writer.put(tag, 4, &[1; 16]),
                5 => writer.enumeration(tag, 7),
                6 => writer.boolean(tag, bytes.is_empty()),
                7 => writer.text(tag, &String::from_utf8_lossy(&bytes)),
                8 => writer.bytes(tag, &bytes),
                9 => writer.date_time(tag, number),
                _ => writer.put(tag, 10, &9_u32.to_be_bytes()),
            }
            writer.finish().to_vec()
        });
    leaf.prop_recursive(6, 64, 8, |inner| {
        prop::collection::vec(inner, 0..8).prop_map(|parts| {
            let inner = parts.concat();
            let len = u32::try_from(inner.len()).unwrap();
            [bytes("42007B01").as_slice(), &len.to_be_bytes(), &inner].concat()
        })
    })
}

proptest! {
    #[test]
    fn whatever_is_written_is_read_and_written_again(message in any_value()) {
        let Ok(item) = Item::decode(&message) else { panic!("written by the writer") };
        prop_assert!(*item.encode() == message);
    }

    #[test]
    fn a_changed_message_is_refused_or_is_another_that_is_written_again(
        message in any_value(),
        at in any::<prop::sample::Index>(),
        mask in 1_u8..,
    ) {
        let mut message = message;
        let at = at.index(message.len());
        message[at] ^= mask;
        if let Ok(item) = Item::decode(&message) {
            prop_assert!(*item.encode() == message);
        }
    }

    #[test]
    fn any_bytes_are_refused_or_written_again(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(item) = Item::decode(&bytes) {
            prop_assert!(*item.encode() == bytes);
        }
    }
}
