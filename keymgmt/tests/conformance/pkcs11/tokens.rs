//! Two tokens of SoftHSM2, and a process of its own for every claim about them.

use std::path::{Path, PathBuf};
use std::process::Command;

use cryptoki::context::{CInitializeArgs, CInitializeFlags};
use cryptoki::object::Attribute;
use cryptoki::session::UserType;
use keymgmt::manager::{KeyError, KeyManager};
use keymgmt::provider::Provider;
use keymgmt::registry::Opening;
use keymgmt::source::{NoPrompt, Purpose, SecretReader};

use crate::services::Service;

/// Set in the process that makes the claim: the directory of its tokens.
const TOKENS: &str = "SEALBD_TEST_TOKENS";

/// Two tokens, `one` and `two`, as the process that uses them sees them.
pub(crate) struct Tokens {
    pub(crate) dir: PathBuf,
    pub(crate) module: PathBuf,
}

/// Makes a claim in a process of its own. `name` is the name of the test.
pub(crate) fn with_tokens(name: &str, claim: impl AsyncFnOnce(&Tokens)) {
    if let Some(dir) = std::env::var_os(TOKENS) {
        let dir = PathBuf::from(dir);
        let tokens = Tokens { module: std::env::var_os("FRONT_MODULE").unwrap().into(), dir };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build();
        runtime.unwrap().block_on(claim(&tokens));
        std::fs::write(tokens.dir.join("held"), "").unwrap();
        return;
    }
    let service = Service::start("softhsm", &[]);
    let dir = service.says("DIR");
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args([&format!("pkcs11::{name}"), "--exact", "--nocapture"]).env(TOKENS, dir);
    for variable in ["SOFTHSM2_CONF", "FRONT_MODULE", "FRONT_CONTROL"] {
        child.env(variable, service.says(variable));
    }
    let output = child.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{stdout}");
    let held = Path::new(dir).join("held").exists();
    assert!(output.status.success() && held, "{}\n{stdout}\n{stderr}", output.status);
}

impl Tokens {
    pub(crate) fn front(&self) -> PathBuf {
        self.dir.join("front.so")
    }

    pub(crate) fn table(&self, module: &Path, token: &str, more: &str) -> String {
        let pin = self.dir.join(format!("{token}.pin"));
        format!(
            "type = 'pkcs11'\nmodule = '{}'\ntoken = '{token}'\npin = 'file:{}'\ntimeout = '30s'\n{more}",
            module.display(),
            pin.display()
        )
    }

    /// A manager of SoftHSM's token `token`.
    pub(crate) fn manager(&self, token: &str, key: Option<&str>, more: &str) -> Box<dyn KeyManager> {
        opened(&self.table(&self.module, token, more), key, Purpose::Unlock).0.unwrap()
    }

    /// A manager of token `one` behind the front.
    pub(crate) fn fronted(&self, key: Option<&str>, more: &str) -> Box<dyn KeyManager> {
        opened(&self.table(&self.front(), "one", more), key, Purpose::Unlock).0.unwrap()
    }

    /// What the front does from now on.
    pub(crate) fn front_does(&self, lines: &str) {
        // Renamed into place: the front may be reading.
        let (new, control) = (self.dir.join("control.new"), self.dir.join("control"));
        std::fs::write(&new, lines).unwrap();
        std::fs::rename(new, control).unwrap();
    }

    /// How many logins the front has seen.
    pub(crate) fn logins(&self) -> usize {
        std::fs::read_to_string(self.dir.join("control.logins")).map_or(0, |text| text.lines().count())
    }

    /// The administrator's own tool on token `one`.
    pub(crate) fn tool(&self, arguments: &[&str]) -> String {
        let pin = std::fs::read_to_string(self.dir.join("one.pin")).unwrap();
        let mut tool = Command::new("pkcs11-tool");
        tool.arg("--module").arg(&self.module).args(["--token-label", "one", "--login", "--pin", &pin]);
        let output = tool.args(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// What the tool lists of the secret key of that id.
    pub(crate) fn listed(&self, id: &str) -> String {
        let all = self.tool(&["--list-objects", "--type", "secrkey"]);
        let of_id = |key: &&str| key.contains(&format!("ID:         {id}\n"));
        all.split("Secret Key Object").find(of_id).unwrap_or_else(|| panic!("no key {id}: {all}")).to_owned()
    }

    /// Changes a key as no tool does, by its id of one byte.
    pub(crate) fn change(&self, id: u8, attributes: &[Attribute]) {
        let library = cryptoki::context::Pkcs11::new(&self.module).unwrap();
        // Fails when a manager of this process was first.
        let _ = library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
        let mut slots = library.get_slots_with_initialized_token().unwrap().into_iter();
        let slot = slots.find(|slot| library.get_token_info(*slot).unwrap().label() == "one").unwrap();
        let session = library.open_rw_session(slot).unwrap();
        let pin = std::fs::read_to_string(self.dir.join("one.pin")).unwrap();
        session.login(UserType::User, Some(&pin.into())).unwrap();
        let found = session.find_objects(&[Attribute::Id(vec![id])]).unwrap();
        session.update_attributes(found[0], attributes).unwrap();
    }

    /// A key as docs/KEYS.md has the administrator make it.
    pub(crate) fn make_key(&self, label: &str, id: &str, more: &[&str]) {
        let key = ["--keygen", "--key-type", "AES:32", "--label", label, "--id", id];
        self.tool(&[&key[..], more].concat());
    }
}

/// A manager and the warnings on the way to it, without tries again.
pub(crate) fn opened(
    table: &str,
    key: Option<&str>,
    purpose: Purpose,
) -> (Result<Box<dyn KeyManager>, KeyError>, Vec<String>) {
    let provider = Provider::parse("hsm", table.parse().unwrap()).unwrap();
    let mut prompter = NoPrompt;
    let mut reader = SecretReader::with_credentials(&mut prompter, None);
    let mut opening = Opening::new(&mut reader, purpose);
    let manager = provider.open(key, &mut opening);
    (manager, opening.warnings)
}
