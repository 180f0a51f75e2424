//! Tokens, logins and policies of the mock: deny by default, as the documentation of policies says.

use serde_json::json;

use super::{Answer, Request, State, errors};

/// A token.
#[derive(Clone, Default)]
pub(crate) struct TokenEntry {
    pub(crate) namespace: String,
    pub(crate) policies: Vec<Policy>,
    /// On the server's clock; none for one that does not end.
    pub(crate) expires: Option<u64>,
    /// What a renewal grants, in seconds.
    pub(crate) ttl: u64,
    /// Renewals go no further; none where they may go on for ever.
    pub(crate) longest: Option<u64>,
    pub(crate) renewable: bool,
    /// With the right to ask for itself and to renew itself, as Vault's `default` policy grants it.
    pub(crate) without_default: bool,
}

/// Who may log in, by whatever the method calls its secret, and what for.
#[derive(Clone, Default)]
pub(crate) struct Role {
    pub(crate) name: &'static str,
    pub(crate) secret: String,
    /// Logins left; none for any number.
    pub(crate) uses: Option<u32>,
    pub(crate) grants: TokenEntry,
    pub(crate) logins: u32,
}

/// Rules of one HCL file.
#[derive(Clone, Default)]
pub(crate) struct Policy {
    rules: Vec<(String, Vec<String>)>,
}

impl Policy {
    /// Reads the part of HCL that policies are written in: `path "…" { capabilities = ["…"] }`.
    pub(crate) fn parse(hcl: &str) -> Self {
        let lines = hcl.lines().map(|line| line.split('#').next().unwrap());
        let text: String = lines.collect::<Vec<_>>().join(" ");
        let quoted = |text: &str| text.split('"').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        let blocks = text.split('}').filter(|block| !block.trim().is_empty());
        let rule = |block: &str| {
            let (path, rest) = block.split_once('{').expect("a block");
            assert!(path.trim_start().starts_with("path") && rest.contains("capabilities"), "{block}");
            (quoted(path).remove(0), quoted(rest))
        };
        Self { rules: blocks.map(rule).collect() }
    }

    /// The length of the longest rule for a path, and whether it allows; an exact one counts for more.
    fn allows(&self, path: &str, capability: &str) -> Option<(usize, bool)> {
        let matches = |pattern: &str| match pattern.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix).then_some(prefix.len()),
            None => (path == pattern).then_some(usize::MAX),
        };
        let rules = self.rules.iter().filter_map(|(pattern, caps)| Some((matches(pattern)?, caps)));
        let best = rules.max_by_key(|(len, _)| *len);
        best.map(|(len, caps)| (len, caps.iter().any(|known| known == capability)))
    }
}

impl State {
    pub(super) fn authorise(&self, request: &Request) -> Result<(), Answer> {
        let denied = || errors(403, "1 error occurred:\n\t* permission denied\n\n");
        let token = request.headers.get("x-vault-token").and_then(|text| self.tokens.get(text));
        let token =
            token.filter(|token| token.expires.is_none_or(|end| end > self.now)).ok_or_else(denied)?;
        if token.namespace != request.namespace() {
            return Err(denied());
        }
        let own = ["auth/token/lookup-self", "auth/token/renew-self"].contains(&request.path.as_str());
        if own && !token.without_default {
            return Ok(());
        }
        let capability = match request.method.as_str() {
            "GET" => "read",
            "DELETE" => "delete",
            "POST" | "PUT" if self.exists(request) => "update",
            "POST" | "PUT" => "create",
            _ => return Err(errors(405, "unsupported operation")),
        };
        let rules = token.policies.iter().filter_map(|policy| policy.allows(&request.path, capability));
        match rules.max_by_key(|(len, _)| *len) {
            Some((_, true)) => Ok(()),
            _ => Err(denied()),
        }
    }

    pub(super) fn login(&mut self, mount: &str, request: &Request) -> Answer {
        let namespace = request.namespace();
        let Some((method, role)) = self.roles.iter_mut().find(|(method, _)| **method == mount) else {
            return errors(403, "permission denied");
        };
        let (name, secret) = match *method {
            "approle" => (request.text("role_id"), request.text("secret_id")),
            "kubernetes" => (request.text("role"), request.text("jwt")),
            _ => (request.text("name"), request.has_certificate.then_some("certificate")),
        };
        let fits =
            name == Some(role.name) && secret == Some(&role.secret) && role.grants.namespace == namespace;
        if !fits || role.uses == Some(0) {
            return errors(400, "invalid role or secret ID");
        }
        role.uses = role.uses.map(|uses| uses - 1);
        role.logins += 1;
        let text = format!("hvs.CANARY-{mount}-{}", role.logins);
        let mut entry = role.grants.clone();
        entry.expires = (entry.ttl > 0).then(|| self.now + entry.ttl);
        let auth = json!({ "client_token": text, "accessor": "a", "lease_duration": entry.ttl,
            "renewable": entry.renewable, "policies": ["default", "sealbd"], "token_type": "service" });
        self.tokens.insert(text, entry);
        (
            200,
            json!({ "request_id": "0", "lease_id": "", "renewable": false, "lease_duration": 0, "data": null, "auth": auth }),
        )
    }

    pub(super) fn token(&mut self, operation: &str, request: &Request) -> Answer {
        let text = request.headers["x-vault-token"].clone();
        let now = self.now;
        let entry = self.tokens.get_mut(&text).expect("it was authorised");
        match (operation, request.method.as_str()) {
            ("lookup-self", "GET") => {
                let ttl = entry.expires.map_or(0, |end| end - now);
                // The time of day is far off, as where the server's clock is wrong.
                let data = json!({ "ttl": ttl, "renewable": entry.renewable, "expire_time": "1990-01-01T00:00:00Z" });
                (200, json!({ "data": data }))
            }
            ("renew-self", "POST") if entry.renewable => {
                let end = (now + entry.ttl).min(entry.longest.unwrap_or(u64::MAX));
                entry.expires = Some(end);
                let auth = json!({ "client_token": text, "lease_duration": end - now, "renewable": true });
                (200, json!({ "auth": auth }))
            }
            ("renew-self", "POST") => errors(400, "lease is not renewable"),
            _ => errors(405, "unsupported operation"),
        }
    }
}
