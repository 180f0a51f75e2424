//! What is sent, what is read, and what is refused, byte by byte.

use proptest::prelude::*;

use super::*;
use crate::derive::tests::CONTEXT;

fn slot() -> Slot {
    Slot { key_id: "team/db".into(), version: "7".into(), blob: vec![0xff; 3] }
}

fn line(question: &Question<'_>) -> String {
    String::from_utf8(question.encode().to_vec()).unwrap()
}

#[test]
fn a_question_is_one_line_with_what_its_verb_has() {
    let mut question = Question::new(Verb::Wrap, "0-1", 5000).about(CONTEXT);
    (question.key, question.kek) = (Some("db"), Some("AAAA"));
    let (volume, aad) = {
        let Context { volume, aad, .. } = question.context.as_ref().unwrap();
        (volume.clone(), aad.clone())
    };
    assert_eq!(volume.len(), 36);
    assert_eq!(STANDARD.decode(&aad).unwrap(), CONTEXT.aad());
    let (epoch, suite) = (CONTEXT.epoch, CONTEXT.suite);
    assert_eq!(
        line(&question),
        format!(
            "{{\"sealbd_plugin\":1,\"verb\":\"wrap\",\"request_id\":\"0-1\",\"timeout_ms\":5000,\"key\":\"db\",\
             \"volume\":\"{volume}\",\"epoch\":{epoch},\"suite\":{suite},\"aad\":\"{aad}\",\"kek\":\"AAAA\"}}\n"
        )
    );
    assert_eq!(
        line(&Question::new(Verb::Destroy, "0-1", 1).of_slot(&slot())),
        "{\"sealbd_plugin\":1,\"verb\":\"destroy\",\"request_id\":\"0-1\",\"timeout_ms\":1,\
         \"key_id\":\"team/db\",\"version\":\"7\",\"blob\":\"////\"}\n"
    );
}

#[test]
fn the_longest_question_fits_the_room_that_is_kept_for_it() {
    // Quotes and backslashes take two bytes each.
    let id = "\\".repeat(KEY_ID_MAX);
    let slot = Slot { key_id: id.clone(), version: "\"".repeat(VERSION_MAX), blob: vec![1; BLOB_MAX] };
    let secret = secret_text(&[1; SECRET_BYTES_MAX]);
    let kek = secret_text(&[1; 32]);
    let mut question = Question::new(Verb::Unwrap, &id[..36], u64::MAX).about(CONTEXT).of_slot(&slot);
    question.secret = Some(&secret);
    question.key = Some(&id);
    question.kek = Some(&kek);
    let line = question.encode();
    assert!(line.len() <= QUESTION_BYTES, "{}", line.len());
    assert_eq!(line.capacity(), QUESTION_BYTES);
}

fn refused<T: Reply>(answer: &[u8]) -> String {
    match parse::<T>(answer) {
        Err(why) => why,
        Ok(_) => panic!("{:?} is taken for an answer", String::from_utf8_lossy(answer)),
    }
}

#[test]
fn an_answer_is_exactly_one_object_on_one_line() {
    assert!(matches!(parse::<Done>(b"{\"ok\":{}}\n"), Ok(Answer::Ok(Done {}))));
    assert!(matches!(parse::<Done>(b" {\"ok\": {}} \r\n"), Ok(Answer::Ok(Done {}))));
    for (answer, why) in [
        (&b""[..], "it ended without an answer"),
        (b"{\"ok\":{}}", "its answer does not end with a newline"),
        (b"{\"ok\":{}}\n{\"ok\":{}}\n", "it answered more than one line"),
        (b"{\"ok\":{}}\n\n", "it answered more than one line"),
        (b"\n", "its answer is not a JSON object"),
        (b"[{},null]\n", "its answer is not a JSON object"),
        (b"{\"ok\":{}} x\n", "its answer is not JSON (byte 11 of the line)"),
        (b"{\"ok\":\xff}\n", "its answer is not JSON (byte 7 of the line)"),
        (b"{}\n", "its answer has not exactly one of ok and error"),
        (b"{\"ok\":null}\n", "its answer has not exactly one of ok and error"),
        (b"{\"ok\":{},\"error\":{\"kind\":\"denied\"}}\n", "its answer has not exactly one of ok and error"),
    ] {
        assert_eq!(refused::<Done>(answer), why, "{:?}", String::from_utf8_lossy(answer));
    }
    for answer in [
        &b"{\"ok\":{\"more\":1}}\n"[..],
        b"{\"ok\":{},\"ok\":{}}\n",
        b"{\"ok\":{},\"secret-of-mine\":1}\n",
        b"{\"error\":{\"kind\":\"another\"}}\n",
        b"{\"error\":{\"kind\":\"denied\",\"message\":1}}\n",
    ] {
        let why = refused::<Done>(answer);
        assert!(why.starts_with("its answer has other fields than this verb answers"), "{why}");
        assert!(!why.contains("mine"), "nothing of an answer is repeated: {why}");
    }
    let nested = [b"{\"ok\":".to_vec(), vec![b'['; 10_000], vec![b'\n']].concat();
    assert!(refused::<Done>(&nested).starts_with("its answer "));
}

fn kek(text: &str) -> Result<Answer<Secret32>, String> {
    parse(format!("{{\"ok\":{{\"kek\":\"{text}\"}}}}\n").as_bytes())
}

#[test]
fn a_kek_is_32_bytes_in_canonical_base64() {
    let right = STANDARD.encode([7; 32]);
    let Ok(Answer::Ok(secret)) = kek(&right) else { panic!("a right key is refused") };
    assert_eq!(secret.expose(), &[7; 32]);
    // Slashes may be escaped, as some writers of JSON do.
    assert!(kek(&STANDARD.encode([0xff; 32]).replace('/', "\\/")).is_ok());
    let loose = right.replace("Bwc=", "Bwd=");
    assert_ne!(loose, right);
    for wrong in [
        "",
        &STANDARD.encode([7; 31]),
        &STANDARD.encode([7; 33]),
        &STANDARD.encode([7; 64]),
        right.trim_end_matches('='),
        &loose,
        &right.replace('B', "\u{430}"),
        &" ".repeat(44),
    ] {
        assert!(kek(wrong).is_err(), "{wrong:?}");
    }
}

fn wrapped(key_id: &str, version: &str, blob_len: usize) -> Result<Answer<Slot>, String> {
    let blob = STANDARD.encode(vec![1; blob_len]);
    let answer = serde_json::json!({ "ok": { "key_id": key_id, "version": version, "blob": blob } });
    parse(format!("{answer}\n").as_bytes())
}

#[test]
fn what_does_not_fit_a_keyslot_or_a_terminal_is_refused() {
    let longest = "k".repeat(KEY_ID_MAX);
    let Ok(Answer::Ok(slot)) = wrapped(&longest, &"9".repeat(VERSION_MAX), BLOB_MAX) else {
        panic!("the longest of everything is refused")
    };
    assert_eq!(slot.uri().len(), KEK_URI_MAX);
    assert!(slot.details().len() <= stored::DETAILS_MAX);
    assert!(wrapped("k", "", 1).is_ok(), "a version may be left out");
    for id in ["", &"k".repeat(KEY_ID_MAX + 1), "\u{1b}[31m", "a b", "a\nb", "schl\u{fc}ssel", "\u{202e}x"] {
        let why = wrapped(id, "1", 60).err().unwrap();
        assert_eq!(why, "a key id has 1 to 251 printable ASCII characters");
    }
    for version in ["9".repeat(VERSION_MAX + 1), "\u{7}".into(), "\u{661}".into()] {
        let why = wrapped("k", &version, 60).err().unwrap();
        assert_eq!(why, "a version has at most 64 printable ASCII characters");
    }
    for len in [0, BLOB_MAX + 1, 4000] {
        let why = wrapped("k", "1", len).err().unwrap();
        assert_eq!(why, format!("the blob is {len} bytes; 1 to 400 fit into a keyslot"));
    }
}

#[test]
fn a_keyslot_of_a_plug_in_is_read_back_and_nothing_else_is() {
    let dek = crate::secret::Dek::generate().unwrap();
    let kek = Secret32::generate().unwrap();
    let made = |uri: &str, details: &[u8]| {
        stored::wrap(&kek, &dek, CONTEXT, SlotType::Exec, uri.to_owned(), details).unwrap()
    };
    assert_eq!(Slot::of(&made(&slot().uri(), &slot().details())).unwrap(), slot());
    for (uri, details) in [
        ("exec:", &b"\x017b"[..]),
        ("exec", b"\x017b"),
        ("Exec:k", b"\x017b"),
        ("exec:k k", b"\x017b"),
        ("exec:k", b""),
        ("exec:k", b"\x01"),
        ("exec:k", b"\x017"),
        ("exec:k", b"\x027"),
        ("exec:k", b"\x01\x07b"),
        ("exec:k", b"\x01\xffb"),
        ("exec:k", &[&[0][..], &[1; BLOB_MAX + 1]].concat()),
    ] {
        let read = Slot::of(&made(uri, details));
        assert!(matches!(read, Err(KeyError::Malformed(_))), "{uri} {details:?}: {read:?}");
    }
}

#[test]
fn what_a_plug_in_says_is_shown_without_controls_and_without_secrets() {
    assert_eq!(printable(" no\nway\u{1b}[2J \u{202e}\u{fc}\t", &[]), "no way\\u{1b}[2J \\u{202e}\u{fc}");
    let secret = "0123456789abcdef0123456789abcdef";
    assert_eq!(printable("my secret is 0123456789abcdef0", &[secret]), "(left out, for it holds a secret)");
    assert_eq!(printable(&"x".repeat(9000), &[secret]).len(), SHOWN_MAX);
}

/// Mostly what looks like an answer, so that reading gets past the first byte.
fn any_answer() -> impl Strategy<Value = Vec<u8>> {
    let looks = "\\{\"(ok|error)\":\\{(\"(kek|blob|key_id|version|kind|text)\":(\"[ -~]{0,60}\"|[0-9.e-]{1,9}|null),?){0,3}\\}\\}\n";
    prop_oneof![looks.prop_map(String::into_bytes), prop::collection::vec(any::<u8>(), 0..200)]
}

proptest! {
    #[test]
    fn any_bytes_are_an_answer_or_are_refused_without_being_repeated(answer in any_answer()) {
        for told in [
            parse::<Slot>(&answer).err(),
            parse::<Secret32>(&answer).err(),
            parse::<Status>(&answer).err(),
            parse::<Done>(&answer).err(),
        ] {
            prop_assert!(told.is_none_or(|told| told.len() < 100 && told.is_ascii()));
        }
    }

    #[test]
    fn what_is_read_from_a_keyslot_has_no_other_spelling(
        details in prop::collection::vec(any::<u8>(), 0..80),
        first in 0_u8..6,
        kek_uri in "(exec:)?[ -~]{0,8}",
    ) {
        let details = [vec![first], details].concat();
        let private = [vec![1; 9], details.clone()].concat();
        let key = WrappedKey { slot_type: SlotType::Exec, kek_uri, wrapped: vec![0; 60], private };
        if let Ok(slot) = Slot::of(&key) {
            prop_assert_eq!(slot.uri(), key.kek_uri);
            prop_assert_eq!(slot.details(), details);
        }
    }
}
