//! Who acts: host, user and process, as the kernel knows them, and what others claim.

use nix::unistd::{Uid, User};
use serde::{Deserialize, Serialize};

use super::text::Text;

/// What the kernel reports when nobody logged in (audit(7): unset).
const LOGIN_UID_UNSET: u32 = u32::MAX;

/// Host, user and process of a record.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Who {
    /// Name of the host (uname).
    pub host: Text<64>,
    /// The process's user.
    pub uid: u32,
    /// The name of that user, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<Text<64>>,
    /// Who logged in, as the kernel keeps it over su and sudo; missing where nobody did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login_uid: Option<u32>,
    /// Who called sudo, as the environment says: a claim, no proof.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sudo_uid: Option<u32>,
    /// Who asked over a socket, as the kernel says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_uid: Option<u32>,
    /// The process.
    pub pid: u32,
}

impl Who {
    /// This process. Asks the user database of the system for the user's name.
    #[must_use]
    pub fn current() -> Self {
        let uid = rustix::process::getuid().as_raw();
        let name = User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| Text::of(&user.name));
        let login = std::fs::read_to_string("/proc/self/loginuid").ok();
        let login = login.and_then(|text| text.trim().parse().ok()).filter(|uid| *uid != LOGIN_UID_UNSET);
        Self {
            host: Text::of(&rustix::system::uname().nodename().to_string_lossy()),
            uid,
            user: name,
            login_uid: login,
            sudo_uid: std::env::var("SUDO_UID").ok().and_then(|text| text.parse().ok()),
            peer_uid: None,
            pid: std::process::id(),
        }
    }

    /// This process on behalf of a peer of a socket, whose user the kernel told.
    #[must_use]
    pub fn for_peer(uid: u32) -> Self {
        Self { peer_uid: Some(uid), ..Self::current() }
    }

    #[cfg(test)]
    pub(super) fn longest() -> Self {
        let worst = "\\".repeat(1000);
        Self {
            host: Text::of(&worst),
            uid: u32::MAX,
            user: Some(Text::of(&worst)),
            login_uid: Some(u32::MAX),
            sudo_uid: Some(u32::MAX),
            peer_uid: Some(u32::MAX),
            pid: u32::MAX,
        }
    }
}
