//! One suite, every manager: what `KeyManager` promises is held here for each of them.
//!
//! `suite` has the checks, a file per manager has its subjects and what is special about it. Managers of
//! services are tested against the real service, started by a script of `keymgmt/tests/services`.

#![expect(clippy::unwrap_used, reason = "the functions that set a test up panic as its own lines do")]
#![expect(clippy::print_stdout, reason = "the last check that was begun is shown when a test fails")]

#[cfg(feature = "barbican")]
mod barbican;
mod built_in;
mod exec;
#[cfg(feature = "barbican")]
mod hostile;
#[cfg(feature = "kmip")]
mod kmip;
#[cfg(feature = "pkcs11")]
mod pkcs11;
#[cfg(feature = "kmip")]
mod scripted_kmip;
#[cfg(feature = "vault")]
mod scripted_vault;
#[cfg(any(feature = "barbican", feature = "vault", feature = "kmip", feature = "pkcs11", feature = "tpm2"))]
mod services;
mod suite;
#[cfg(feature = "tpm2")]
mod tpm2;
#[cfg(feature = "vault")]
mod vault;
