//! TLS towards key managers: certificates from files, aws-lc as everywhere else.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use zeroize::Zeroizing;

use crate::manager::KeyError;
use crate::private_file;
use crate::provider::TlsSettings;

/// Largest file of certificates or keys; a chain has a few KiB.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// Certificates and key, read.
pub(crate) struct Certificates {
    /// Signers to trust; none stands for those of the system.
    pub(crate) roots: Option<Vec<CertificateDer<'static>>>,
    /// Ours.
    pub(crate) client: Option<(Vec<CertificateDer<'static>>, ClientKey)>,
}

/// A private key, in the form in which it was found.
pub(crate) struct ClientKey {
    pub(crate) pem: Zeroizing<Vec<u8>>,
}

impl Certificates {
    /// Reads the files of settings.
    ///
    /// # Errors
    /// [`KeyError::Settings`] when a file cannot be read or holds nothing of use, or when only one of
    /// certificate and key is given; [`KeyError::Secret`] when others may read the key.
    pub(crate) fn read(settings: &TlsSettings) -> Result<Self, KeyError> {
        let TlsSettings { ca, cert, key } = settings;
        let roots = ca.as_deref().map(certificates).transpose()?;
        let client = match (cert, key) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some((certificates(cert)?, private_key(key)?)),
            _ => return Err(KeyError::Settings("tls needs cert and key together".into())),
        };
        Ok(Self { roots, client })
    }
}

/// The one implementation of TLS's primitives that this program has.
pub(crate) fn crypto() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, KeyError> {
    let failed = |why: String| KeyError::Settings(format!("certificates in {}: {why}", path.display()));
    let len = fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
    if len > PEM_BYTES_MAX {
        return Err(failed(format!("{len} bytes are too many")));
    }
    let pem = fs::read(path).map_err(|error| failed(error.to_string()))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(failed("there are none".into())),
        Err(error) => Err(failed(error.to_string())),
    }
}

fn private_key(path: &Path) -> Result<ClientKey, KeyError> {
    let (mut file, len) = private_file::open("private key", path)?;
    // The parser's message may quote the file, so it is not told.
    let failed = || KeyError::Settings(format!("{} holds no private key in PEM form", path.display()));
    if len > PEM_BYTES_MAX {
        return Err(failed());
    }
    // Room for all of it at once: a buffer that grows leaves copies behind.
    let mut pem = Zeroizing::new(Vec::with_capacity(usize::try_from(len).map_err(|_| failed())? + 1));
    file.read_to_end(&mut pem).map_err(|_| failed())?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| failed())?;
    Ok(ClientKey { pem })
}
