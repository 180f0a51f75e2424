//! Cosmian KMS 5.28.0, as `keymgmt/tests/services/cosmian-kms` starts it: a server that re-keys, wraps, and holds to the
//! states of keys.
//!
//! Building it takes twenty minutes, so these tests are ignored unless the runner knows that it is there already
//! (`keymgmt/tests/services/cosmian-kms cached`) or that it may be built; run by hand they build it.

use super::{Server, opens, wrap};
use crate::suite::{KekOf, Subject, keeps_the_contract};

#[tokio::test]
#[ignore = "needs Cosmian KMS: keymgmt/tests/services/cosmian-kms"]
async fn cosmian_keeps_the_contract_in_every_version_and_mode() {
    let server = Server::start("cosmian-kms");
    for version in ["1.2", "1.4", "2.0"] {
        for mode in ["encrypt", "auto", "get"] {
            let more = format!("version = '{version}'\nmode = '{mode}'");
            let right = server.manager("kms:prod", &more);
            let key = wrap(&*right).await;
            assert!(opens(&*right, &key).await);
            let text = right.describe(&key).unwrap().text;
            println!("{mode}: {}; {text}", right.probe().await.unwrap().text);
            let form = if mode == "get" { "fetched KEK" } else { "AES key wrap in the server" };
            assert!(text.starts_with(form), "{text}");
            let subject = Subject { right, wrong: server.other(&more), kek: KekOf::Manager };
            assert_eq!(keeps_the_contract(&subject).await, 14, "{version} {mode}");
        }
    }
}
