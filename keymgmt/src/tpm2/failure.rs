//! Which of our errors an error of the TPM or of its software stack is.

use tss_esapi::Error;
use tss_esapi::constants::response_code::Tss2ResponseCode;

use crate::manager::KeyError;

/// What was being done: the same code means different things.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    Connecting,
    Storage,
    Session,
    Policy,
    Sealing,
    Loading,
    Unsealing,
}

impl Step {
    fn text(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Storage => "making its storage key",
            Self::Session => "starting a session",
            Self::Policy => "reading its PCRs",
            Self::Sealing => "sealing",
            Self::Loading => "loading the sealed key",
            Self::Unsealing => "unsealing",
        }
    }
}

/// Response codes of format one, without the number of what they belong to (TPM 2.0 Library, part 2, §6.6).
const AUTH_FAIL: u32 = 0x8e;
const POLICY_FAIL: u32 = 0x9d;
const INTEGRITY: u32 = 0x9f;
const BAD_AUTH: u32 = 0xa2;
const BINDING: u32 = 0xa5;
const FORMAT_ONE: u32 = 0x80;
const FORMAT_ONE_MASK: u32 = 0xbf;
/// Warnings, and one of them.
const WARNINGS: std::ops::Range<u32> = 0x900..0x980;
const LOCKOUT: u32 = 0x921;
/// Not started, or failed its self-test.
const INITIALIZE: u32 = 0x100;
const PCR_CHANGED: u32 = 0x128;
/// Layers (TSS 2.0 Overview, §3.2): the TPM itself, and a resource manager that speaks for it.
const LAYER_TPM: u32 = 0;
const LAYER_RESOURCE_MANAGER_TPM: u32 = 11;

/// An error of one step.
pub(crate) fn told(step: Step) -> impl Fn(Error) -> KeyError {
    move |error| {
        let Some(code) = code(&error) else {
            return KeyError::Untrusted(format!("the TPM, {}: {error}", step.text()));
        };
        let text = format!("the TPM, {}: response code {code:#x}", step.text());
        let layer = code >> 16 & 0xff;
        if layer != LAYER_TPM && layer != LAYER_RESOURCE_MANAGER_TPM {
            return KeyError::Unreachable(text);
        }
        let code = code & 0xffff;
        let code = if code & FORMAT_ONE != 0 { code & FORMAT_ONE_MASK } else { code };
        by_code(step, code, text)
    }
}

fn by_code(step: Step, code: u32, text: String) -> KeyError {
    match (step, code) {
        (Step::Storage, AUTH_FAIL | BAD_AUTH) => {
            KeyError::Settings("the TPM's owner hierarchy has a password; sealbd needs it without".into())
        }
        (Step::Unsealing, AUTH_FAIL | BAD_AUTH) => {
            KeyError::Settings("wrong PIN for the sealed key; it is not tried again".into())
        }
        (Step::Unsealing, POLICY_FAIL | PCR_CHANGED) => {
            KeyError::Denied(format!("{text}: its policy does not hold any more"))
        }
        (Step::Loading, INTEGRITY | BINDING) => {
            KeyError::Denied("the sealed key was changed, or another TPM made it".into())
        }
        // Its lengths or contents are none: not what this TPM returned.
        (Step::Loading, FORMAT_ONE..=FORMAT_ONE_MASK) => {
            KeyError::Denied(format!("{text}: the sealed key is damaged"))
        }
        (_, LOCKOUT) => KeyError::Denied(format!("{text}: it is locked after wrong tries of other programs")),
        (_, code) if WARNINGS.contains(&code) || code == INITIALIZE => KeyError::Unreachable(text),
        _ => KeyError::Untrusted(text),
    }
}

/// The number of a response; none for errors of the wrapper library. Its types show it as text only.
fn code(error: &Error) -> Option<u32> {
    let text = match error {
        Error::Tss2Error(Tss2ResponseCode::FormatZero(code)) => code.to_string(),
        Error::Tss2Error(Tss2ResponseCode::FormatOne(code)) => code.to_string(),
        Error::Tss2Error(Tss2ResponseCode::Success) | Error::WrapperError(_) => return None,
    };
    u32::from_str_radix(text.rsplit_once("0x")?.1, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: u32, step: Step) -> KeyError {
        told(step)(Error::Tss2Error(Tss2ResponseCode::from(code)))
    }

    #[test]
    fn a_response_code_becomes_the_error_that_tells_what_to_do() {
        assert!(matches!(error(0x9a2, Step::Storage), KeyError::Settings(why) if why.contains("owner")));
        assert!(matches!(error(0x9a2, Step::Unsealing), KeyError::Settings(why) if why.contains("PIN")));
        assert!(matches!(error(0x98e, Step::Unsealing), KeyError::Settings(_)));
        assert!(matches!(error(0x99d, Step::Unsealing), KeyError::Denied(_)));
        assert!(matches!(error(0x1df, Step::Loading), KeyError::Denied(_)));
        assert!(matches!(error(0x902, Step::Loading), KeyError::Unreachable(_)));
        assert!(matches!(error(0x921, Step::Unsealing), KeyError::Denied(_)));
        assert!(matches!(error(0x000a_000a, Step::Connecting), KeyError::Unreachable(_)));
        assert!(matches!(error(0x000b_09a2, Step::Unsealing), KeyError::Settings(_)));
        assert!(matches!(error(0x101, Step::Sealing), KeyError::Untrusted(_)));
        let wrapper = Error::WrapperError(tss_esapi::WrapperErrorKind::WrongValueFromTpm);
        assert!(matches!(told(Step::Sealing)(wrapper), KeyError::Untrusted(_)));
    }
}
