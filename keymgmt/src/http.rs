//! The one HTTP client of all key managers that speak HTTP: bounded in time and size, no redirects, no
//! proxies from the environment, and answers in memory that is wiped.
//!
//! Requests block on a thread of their own and are awaited from there. Dropping the future leaves the
//! request to its timeout. What the HTTP and TLS libraries buffer on the way is theirs: it is not wiped, but
//! never swapped out or dumped where [`crate::hygiene`] could see to it.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use ureq::http::{HeaderMap, Method, Request};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};
use ureq::{Agent, Error, RequestExt};
use zeroize::Zeroizing;

use crate::manager::KeyError;
use crate::provider::TlsSettings;
use crate::tls::{Certificates, crypto};

/// Largest answer. Catalogs of large clouds have tens of KiB, keys have fewer than one.
pub(crate) const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// A client for one service. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Http {
    agent: Agent,
}

/// What is asked.
pub(crate) struct Ask {
    pub(crate) method: Method,
    pub(crate) url: String,
    /// Names and values; values may be tokens.
    pub(crate) headers: Vec<(&'static str, Zeroizing<String>)>,
    pub(crate) body: Option<Zeroizing<Vec<u8>>>,
}

/// What came back, whatever its status.
pub(crate) struct Answer {
    pub(crate) status: u16,
    #[allow(dead_code, reason = "Keystone answers with its token in one; Vault does not")]
    pub(crate) headers: HeaderMap,
    pub(crate) body: Zeroizing<Vec<u8>>,
}

impl Http {
    /// A client that gives each request, connecting and answer included, `timeout`.
    ///
    /// # Errors
    /// Those of [`Certificates::read`].
    pub(crate) fn new(settings: &TlsSettings, timeout: Duration) -> Result<Self, KeyError> {
        let Certificates { roots, client } = Certificates::read(settings)?;
        let roots = match roots {
            Some(roots) => {
                let roots: Vec<_> = roots.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
                RootCerts::Specific(Arc::new(roots))
            }
            None => RootCerts::PlatformVerifier,
        };
        let client = client.map(|(chain, key)| {
            let chain: Vec<_> = chain.iter().map(|cert| Certificate::from_der(cert).to_owned()).collect();
            let key = PrivateKey::from_pem(&key.pem).map_err(|_| no_key())?;
            Ok::<_, KeyError>(ClientCert::new_with_certs(&chain, key))
        });
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(crypto())
            .root_certs(roots)
            .client_cert(client.transpose()?)
            .build();
        let config = Agent::config_builder()
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .user_agent(concat!("sealbd/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls)
            .build();
        Ok(Self { agent: config.into() })
    }

    /// Asks once.
    ///
    /// # Errors
    /// [`KeyError::Unreachable`] when nobody answers in time, [`KeyError::Untrusted`] when the certificate
    /// does not fit or the answer is no HTTP or too long, [`KeyError::Settings`] for a url that is none.
    pub(crate) async fn ask(&self, ask: Ask) -> Result<Answer, KeyError> {
        let agent = self.agent.clone();
        tokio::task::spawn_blocking(move || ask_now(&agent, ask))
            .await
            .unwrap_or_else(|_| Err(KeyError::Unreachable("the request was stopped".into())))
    }
}

fn ask_now(agent: &Agent, ask: Ask) -> Result<Answer, KeyError> {
    let Ask { method, url, headers, body } = ask;
    let told = |error: Error| failure(&url, &error);
    let mut request = Request::builder().method(method).uri(&url);
    for (name, value) in &headers {
        request = request.header(*name, value.as_str());
    }
    let body = body.unwrap_or_default();
    // The library's own message could hold a header's value.
    let request = request.body(body.as_slice()).map_err(|_| {
        KeyError::Settings(format!("{url} cannot be asked: not a url, or a header's value does not fit"))
    })?;
    let mut response =
        request.with_agent(agent).configure().allow_non_standard_methods(true).run().map_err(told)?;
    let status = response.status().as_u16();
    let mut body = Zeroizing::new(Vec::with_capacity(4096));
    let mut reader = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).reader();
    reader.read_to_end(&mut body).map_err(|error| match error.downcast::<Error>() {
        Ok(error) => failure(&url, &error),
        Err(error) => KeyError::Unreachable(format!("{url}: {error}")),
    })?;
    Ok(Answer { status, headers: response.headers().clone(), body })
}

fn no_key() -> KeyError {
    KeyError::Settings("the private key for TLS is of a kind that is not known".into())
}

/// Which of our errors a failed exchange is. Urls hold no secrets.
fn failure(url: &str, error: &Error) -> KeyError {
    let text = || format!("{url}: {error}");
    match error {
        Error::BadUri(_) | Error::Http(_) | Error::RequireHttpsOnly(_) => KeyError::Settings(text()),
        Error::Tls(_) | Error::Rustls(_) | Error::Pem(_) | Error::TlsRequired => KeyError::Untrusted(text()),
        Error::Protocol(_) | Error::BodyExceedsLimit(_) | Error::LargeResponseHeader(..) => {
            KeyError::Untrusted(text())
        }
        Error::Io(error) if is_tls(error) => KeyError::Untrusted(text()),
        _ => KeyError::Unreachable(text()),
    }
}

/// TLS failures come wrapped in an I/O error.
fn is_tls(error: &std::io::Error) -> bool {
    let mut source = error.get_ref().map(|inner| inner as &(dyn std::error::Error + 'static));
    while let Some(error) = source {
        if error.is::<rustls::Error>() {
            return true;
        }
        source = error.source();
    }
    false
}
