//! PyKMIP 0.11.0, as `keymgmt/tests/services/pykmip` starts it.

use super::{Server, opens, wrap};
use crate::suite::{KekOf, Subject, keeps_the_contract};

#[tokio::test]
async fn pykmip_keeps_the_contract_in_every_version() {
    let server = Server::start("pykmip");
    for version in ["1.2", "1.4", "2.0"] {
        let more = format!("version = '{version}'\nmode = 'get'");
        let right = server.manager("kms:prod", &more);
        assert!(opens(&*right, &wrap(&*right).await).await);
        println!("{}", right.probe().await.unwrap().text);
        let subject = Subject { right, wrong: server.other(&more), kek: KekOf::Manager };
        assert_eq!(keeps_the_contract(&subject).await, 14, "{version}");
    }
}
