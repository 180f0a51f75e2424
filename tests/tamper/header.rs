//! Headers and keyslots.

use super::*;

#[tokio::test]
async fn header_one_copy_flipped_zeroed_or_cut_opens_by_the_other() {
    for copy in HEADER_OFFSETS {
        for damage in [flip, zero, truncate] {
            let scene = closed().await;
            damage(&scene.store, Place { offset: copy, len: 8192 });
            assert_eq!(scene.errors().await, []);
        }
    }
}

#[tokio::test]
async fn header_both_copies_flipped_is_damage_of_the_first() {
    let scene = closed().await;
    HEADER_OFFSETS.into_iter().for_each(|copy| flip_at(&scene.store, copy + 20));
    let damage = scene.structure_damage(&scene.refusal().await);
    assert_eq!(damage, ("header", 0, FormatError::Checksum("header")));
}

#[tokio::test]
async fn header_both_copies_zeroed_is_no_volume() {
    let scene = closed().await;
    for offset in HEADER_OFFSETS {
        zero(&scene.store, Place { offset, len: HEADER_LEN });
    }
    assert!(matches!(scene.refusal().await, VolumeError::NotAVolume));
}

#[tokio::test]
async fn header_altered_with_a_right_checksum_does_not_authenticate() {
    // uuid and salt lead to other keys, so the keyslot's commitment notices first.
    for (field, offset) in [("align", 73), ("export size", 84), ("label", 161), ("keyslot's creation", 4105)]
    {
        let scene = closed().await;
        for copy in HEADER_OFFSETS {
            if field == "align" {
                scene.store.write_raw(copy + 72, &4096u32.to_le_bytes());
            } else {
                scene.store.write_raw(copy + offset, &[1]);
            }
            fix_header_checksum(&scene.store, copy);
        }
        let damage = scene.structure_damage(&scene.refusal().await);
        assert_eq!(damage, ("header", 0, FormatError::Authentication("header")), "{field}");
    }
}

#[tokio::test]
async fn header_with_another_uuid_or_salt_fails_at_the_commitment() {
    for offset in [16, 128] {
        let scene = closed().await;
        for copy in HEADER_OFFSETS {
            flip_at(&scene.store, copy + offset);
            fix_header_checksum(&scene.store, copy);
        }
        let VolumeError::NoKeyFits(lines) = scene.refusal().await else { panic!("another error") };
        assert_eq!(lines, ["slot 0 (keyfile): the keyslot was altered (commitment differs)"]);
    }
}

#[tokio::test]
async fn header_asking_for_the_unknown_is_refused_by_name() {
    let cases: [(u64, &[u8], FormatError); 4] = [
        (8, &[2], FormatError::Version { structure: "header", found: 2, supported: 1 }),
        (10, &[7], FormatError::Version { structure: "header (minor)", found: 7, supported: 0 }),
        (56, &[0x40], FormatError::Incompatible(0x40)),
        (64, &[9], FormatError::Suite(9)),
    ];
    for (offset, bytes, expected) in cases {
        let scene = closed().await;
        for copy in HEADER_OFFSETS {
            scene.store.write_raw(copy + offset, bytes);
            fix_header_checksum(&scene.store, copy);
        }
        match scene.refusal().await {
            VolumeError::Unsupported(found) => assert_eq!(found, expected),
            other => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn header_of_an_older_generation_is_refused_once_a_newer_root_exists() {
    let disk = Disk::new(SIZE).await;
    let old = disk.store.snapshot();
    let unlocked = volumes::unlock_with(&*disk.store, Engine::default()).await.unwrap();
    let mut header = unlocked.header;
    write_header(&*disk.store, &mut header, &unlocked.keys).await.unwrap();
    disk.open().await.close().await.unwrap();
    let scene = Scene::of(&disk.store, vec![0; SECTORS as usize]).await;
    for offset in HEADER_OFFSETS {
        replay(&scene.store, Place { offset, len: HEADER_LEN }, &old);
    }
    let error = scene.refusal().await;
    assert!(matches!(error, VolumeError::HeaderRollback { found: 1, known: 2 }), "{error}");
}

#[tokio::test]
async fn keyslot_commitment_flipped_is_an_altered_keyslot() {
    let scene = closed().await;
    for copy in HEADER_OFFSETS {
        flip_at(&scene.store, copy + 4096 + 1304);
        fix_header_checksum(&scene.store, copy);
    }
    let VolumeError::NoKeyFits(lines) = scene.refusal().await else { panic!("another error") };
    assert_eq!(lines, ["slot 0 (keyfile): the keyslot was altered (commitment differs)"]);
}

#[tokio::test]
async fn keyslot_wrapped_key_flipped_yields_no_key() {
    // The test's manager does not authenticate its wraps: the commitment catches what it lets through.
    let scene = closed().await;
    for copy in HEADER_OFFSETS {
        flip_at(&scene.store, copy + 4096 + 280);
        fix_header_checksum(&scene.store, copy);
    }
    let VolumeError::NoKeyFits(lines) = scene.refusal().await else { panic!("another error") };
    assert_eq!(lines, ["slot 0 (keyfile): the keyslot was altered (commitment differs)"]);
}

#[tokio::test]
async fn keyslot_zeroed_leaves_no_key() {
    let scene = closed().await;
    for copy in HEADER_OFFSETS {
        zero(&scene.store, Place { offset: copy + 4096, len: 2048 });
        fix_header_checksum(&scene.store, copy);
    }
    let VolumeError::NoKeyFits(lines) = scene.refusal().await else { panic!("another error") };
    assert_eq!(lines, ["no keyslot is in use"]);
}

#[tokio::test]
async fn header_of_another_volume_opens_none_of_this_ones_roots() {
    let scene = closed().await;
    let other = closed().await;
    for offset in HEADER_OFFSETS {
        replay(&scene.store, Place { offset, len: HEADER_LEN }, &other.store);
    }
    let VolumeError::NoRoot(why) = scene.refusal().await else { panic!("another error") };
    assert!(why.contains("ring block: authentication failed"), "{why}");
    assert!(why.split("; ").all(|block| block.ends_with("of another volume)")), "{why}");
}
