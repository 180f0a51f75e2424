//! Which of our errors an error of a token is, in words that somebody can act upon.

use cryptoki::error::{Error, RvError};

use crate::manager::KeyError;

/// An error while `doing` something with a token, e.g. `finding the key`.
pub(crate) fn told(doing: &'static str) -> impl Fn(Error) -> KeyError {
    move |error| {
        let text = format!("the token, {doing}: {}", brief(&error));
        match error {
            Error::Pkcs11(code, _) if is_gone(code) => KeyError::Unreachable(text),
            Error::Pkcs11(code, _) => by_code(code, text),
            Error::NullFunctionPointer | Error::NotSupported => KeyError::Unsupported(text),
            Error::LibraryLoading(_) | Error::MissingSymbol(_) => KeyError::Settings(text),
            _ => KeyError::Untrusted(text),
        }
    }
}

/// An error of the step that decides whether a key fits: a keyslot that was changed, belongs elsewhere, or a
/// key that is another one under the same id. Tokens tell it in many ways; SoftHSM as a general error.
pub(crate) fn misfit(uri: &str) -> impl Fn(Error) -> KeyError {
    move |error| match error {
        Error::Pkcs11(
            RvError::GeneralError
            | RvError::FunctionFailed
            | RvError::EncryptedDataInvalid
            | RvError::EncryptedDataLenRange
            | RvError::WrappedKeyInvalid
            | RvError::WrappedKeyLenRange
            | RvError::DataInvalid
            | RvError::SignatureInvalid
            | RvError::ArgumentsBad,
            _,
        ) => KeyError::Denied(format!(
            "{uri} does not fit this keyslot: it is another key than the one that made it, or the keyslot is \
             damaged or of another volume"
        )),
        error => told("unwrapping")(error),
    }
}

/// Whether the token went away, so that trying again may help.
pub(crate) fn is_gone(code: RvError) -> bool {
    matches!(
        code,
        RvError::TokenNotPresent
            | RvError::TokenNotRecognized
            | RvError::DeviceRemoved
            | RvError::DeviceError
            | RvError::DeviceMemory
            | RvError::SessionClosed
            | RvError::SessionHandleInvalid
            | RvError::SessionCount
            | RvError::SlotIdInvalid
            | RvError::CryptokiNotInitialized
            | RvError::HostMemory
            | RvError::UserNotLoggedIn
    )
}

fn by_code(code: RvError, text: String) -> KeyError {
    match code {
        RvError::KeyFunctionNotPermitted
        | RvError::KeyUnextractable
        | RvError::KeyNotWrappable
        | RvError::ActionProhibited
        | RvError::AttributeReadOnly
        | RvError::AttributeSensitive
        | RvError::TokenWriteProtected
        | RvError::SessionReadOnly
        | RvError::UserTypeInvalid
        | RvError::UserAnotherAlreadyLoggedIn
        | RvError::KeySizeRange
        | RvError::KeyTypeInconsistent => KeyError::Denied(text),
        RvError::MechanismInvalid
        | RvError::MechanismParamInvalid
        | RvError::FunctionNotSupported
        | RvError::TemplateInconsistent
        | RvError::TemplateIncomplete
        | RvError::AttributeTypeInvalid
        | RvError::AttributeValueInvalid => KeyError::Unsupported(text),
        // Says nothing; a retry is bounded, and never repeats a login.
        RvError::GeneralError | RvError::FunctionFailed | RvError::VendorDefined(_) => {
            KeyError::Unreachable(text)
        }
        _ => KeyError::Untrusted(text),
    }
}

/// The code and the function, without the library's long sentences.
pub(crate) fn brief(error: &Error) -> String {
    match error {
        Error::Pkcs11(code, function) => format!("{code:?} from C_{function:?}"),
        error => super::keyslot::printable(&error.to_string(), 200),
    }
}

#[cfg(test)]
mod tests {
    use cryptoki::context::Function;

    use super::*;

    #[test]
    fn an_error_of_a_token_becomes_the_error_that_tells_what_to_do() {
        let told = |code| told("finding the key")(Error::Pkcs11(code, Function::FindObjects));
        assert!(matches!(told(RvError::DeviceRemoved), KeyError::Unreachable(_)));
        assert!(matches!(told(RvError::KeyFunctionNotPermitted), KeyError::Denied(_)));
        assert!(matches!(told(RvError::MechanismInvalid), KeyError::Unsupported(_)));
        assert!(matches!(told(RvError::BufferTooSmall), KeyError::Untrusted(_)));
        assert_eq!(
            told(RvError::DeviceRemoved).to_string(),
            "key manager unreachable: the token, finding the key: DeviceRemoved from C_FindObjects"
        );
        let misfit = misfit("pkcs11:01")(Error::Pkcs11(RvError::GeneralError, Function::Decrypt));
        assert!(matches!(misfit, KeyError::Denied(_)));
    }
}
