//! Response codes of the TSS libraries and of the TPM behind them (TCG TSS 2.0 Overview, 3.3; TPM 2.0 Library, Part 2, 6.6).
//!
//! Names for those that operators meet; all others show their number.

use std::fmt;

use tss_esapi::constants::response_code::Tss2ResponseCode;

/// A response code that is not success.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Code(u32);

/// Layers, by the byte above the code.
const LAYERS: [(u32, &str); 8] =
    [(0, "tpm"), (6, "fapi"), (7, "esys"), (8, "sys"), (9, "mu"), (10, "tcti"), (11, "rmt"), (12, "rm")];
const TPM: u32 = 0;
const ESYS: u32 = 7;
const SYS: u32 = 8;
const TCTI: u32 = 10;
/// A resource manager, with what the TPM said to it.
const MANAGED_TPM: u32 = 11;
/// A resource manager in its own name, or with what a TPM would say in its place.
const MANAGER: u32 = 12;
/// Codes that all layers above the TPM share.
const LIBRARY: [(u32, &str); 12] = [
    (1, "general failure"),
    (2, "not implemented"),
    (4, "version mismatch"),
    (5, "bad reference"),
    (6, "buffer too small"),
    (7, "out of sequence"),
    (8, "no connection"),
    (9, "try again"),
    (10, "IO failure"),
    (11, "bad value"),
    (16, "a buffer isn't large enough"),
    (19, "malformed response"),
];
/// Warnings and errors without a position.
const FORMAT_ZERO: [(u32, &str); 22] = [
    (0x100, "TPM not initialized: nobody has sent TPM2_Startup since it was reset"),
    (0x101, "TPM in failure mode"),
    (0x120, "the command is disabled"),
    (0x125, "an authorization is missing"),
    (0x12f, "authorization value or policy not available"),
    (0x130, "TPM must be restarted"),
    (0x143, "command not supported"),
    (0x148, "NV locked"),
    (0x14b, "no room for another persistent object"),
    (0x14c, "there is a persistent object of this handle already"),
    (0x152, "the parent is not valid"),
    (0x155, "the sensitive area is not valid"),
    (0x902, "out of memory for objects"),
    (0x903, "out of memory for sessions"),
    (0x904, "out of memory"),
    (0x905, "out of session handles"),
    (0x908, "TPM yielded"),
    (0x90a, "TPM is testing itself"),
    (0x920, "TPM limits how often its NV is written"),
    (0x921, "TPM is in lockout: too many wrong passwords, or power cuts"),
    (0x922, "TPM was busy: retry"),
    (0x923, "NV not available"),
];
/// Errors of a parameter, a handle or a session.
const FORMAT_ONE: [(u32, &str); 18] = [
    (0x02, "inconsistent attributes"),
    (0x03, "hash algorithm not supported"),
    (0x04, "value is out of range or not correct for the context"),
    (0x05, "hierarchy not enabled"),
    (0x07, "key size not supported"),
    (0x0a, "type not supported"),
    (0x0b, "the handle is not correct: there is no such object"),
    (0x0e, "authorization failure, which counts towards a lockout"),
    (0x12, "scheme not supported"),
    (0x15, "structure is of the wrong size"),
    (0x16, "symmetric algorithm not supported"),
    (0x17, "structure tag not correct"),
    (0x1a, "structure is cut short"),
    (0x1c, "key fields are not compatible"),
    (0x1d, "policy check failed"),
    (0x1f, "integrity check failed"),
    (0x21, "reserved bits are set"),
    (0x22, "authorization failure without lockout: the password is wrong"),
];

impl Code {
    /// There is no object at the handle that was asked for: `TPM_RC_HANDLE` of handle 1.
    const ABSENT: u32 = 0x18b;
    /// `TPM_RC_NV_SPACE`
    const NO_ROOM: u32 = 0x14b;
    /// `TPM_RC_YIELDED`, `TPM_RC_TESTING`, `TPM_RC_NV_RATE`, `TPM_RC_RETRY`, `TPM_RC_NV_UNAVAILABLE`
    const BUSY: [u32; 5] = [0x908, 0x90a, 0x920, 0x922, 0x923];
    /// `TPM_RC_SESSION_HANDLES`
    const SESSION_HANDLES: u32 = 0x905;
    /// `TPM_RC_OBJECT_MEMORY`, `TPM_RC_SESSION_MEMORY`, `TPM_RC_MEMORY`, `TPM_RC_SESSION_HANDLES`
    const FULL: [u32; 4] = [0x902, 0x903, 0x904, Self::SESSION_HANDLES];

    /// `None` for success.
    pub(crate) fn of(code: u32) -> Option<Code> {
        (code != 0).then_some(Code(code))
    }

    /// What the wrapper was answered.
    pub(crate) fn from_wrapper(code: Tss2ResponseCode) -> Code {
        // The number is private in the wrapper, but for the text that it gives as its cause: "Response code value: 0x18b".
        let text = match code {
            Tss2ResponseCode::Success => String::new(),
            Tss2ResponseCode::FormatZero(code) => code.to_string(),
            Tss2ResponseCode::FormatOne(code) => code.to_string(),
        };
        let digits = text.rsplit_once("0x").map(|(_, digits)| digits).unwrap_or_default();
        // A general failure where there is no number: then nobody takes it for an answer of the TPM.
        Code(u32::from_str_radix(digits, 16).unwrap_or(TCTI << 16 | 1))
    }

    /// Whether there is no object at the handle that was asked for.
    pub(crate) fn is_absent(self) -> bool {
        self.is_of_tpm() && self.layer() != MANAGER && self.number() == Self::ABSENT
    }

    /// Whether the TPM has no place for one more persistent object.
    pub(crate) fn is_no_room(self) -> bool {
        self.is_of_tpm() && self.number() == Self::NO_ROOM
    }

    /// Whether the TPM will answer if it is asked again.
    pub(crate) fn is_busy(self) -> bool {
        self.is_of_tpm() && Self::BUSY.contains(&self.number())
    }

    /// Whether the TPM has no place for one more loaded object or session.
    pub(crate) fn is_full(self) -> bool {
        self.is_of_tpm() && Self::FULL.contains(&self.number())
    }

    /// Whether it has no handle for one more session, though there may be room.
    pub(crate) fn is_out_of_session_handles(self) -> bool {
        self.is_of_tpm() && self.number() == Self::SESSION_HANDLES
    }

    /// Whether the TPM may do it on a new connection: the way to it broke, or what was known about its handles is no longer so.
    pub(crate) fn is_stale(self) -> bool {
        if self.is_of_tpm() {
            return (0x910..=0x91e).contains(&self.number()) || self.is_absent();
        }
        [ESYS, SYS, TCTI, MANAGED_TPM, MANAGER].contains(&self.layer())
    }

    /// Whether it means what the TPM means by it. Below that the layers have numbers in common with each other.
    fn is_of_tpm(self) -> bool {
        match self.layer() {
            TPM => true,
            MANAGED_TPM | MANAGER => self.number() >= 0x80,
            _ => false,
        }
    }

    fn number(self) -> u32 {
        self.0 & 0xffff
    }

    fn layer(self) -> u32 {
        self.0 >> 16 & 0xff
    }
}

fn name(names: &[(u32, &'static str)], code: u32) -> Option<&'static str> {
    names.iter().find(|(number, _)| *number == code).map(|(_, name)| *name)
}

impl fmt::Display for Code {
    /// As the public service words them: `tpm:parameter(1):integrity check failed (0x1df)`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.number();
        match name(&LAYERS, self.layer()) {
            Some(layer) => write!(formatter, "{layer}:")?,
            None => write!(formatter, "layer {}:", self.layer())?,
        }
        let known = if !self.is_of_tpm() {
            name(&LIBRARY, code)
        } else if code & 0x80 == 0 {
            name(&FORMAT_ZERO, code)
        } else {
            let position = code >> 8 & 0xf;
            match position {
                0 => {}
                _ if code & 0x40 != 0 => write!(formatter, "parameter({position}):")?,
                1..8 => write!(formatter, "handle({position}):")?,
                _ => write!(formatter, "session({}):", position - 8)?,
            }
            name(&FORMAT_ONE, code & 0x3f)
        };
        write!(formatter, "{} ({:#x})", known.unwrap_or("unnamed response code"), self.0)
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl std::error::Error for Code {}

#[cfg(test)]
mod tests {
    use std::str::FromStr as _;

    use tss_esapi::Context;
    use tss_esapi::structures::Public;
    use tss_esapi::tcti_ldr::TctiNameConf;
    use tss_esapi::traits::UnMarshall as _;

    use super::*;

    /// `tpm.md`, section 8.
    #[test]
    fn codes_read_as_operators_know_them() {
        for (code, text) in [
            (0x1df, "tpm:parameter(1):integrity check failed (0x1df)"),
            (0x3df, "tpm:parameter(3):integrity check failed (0x3df)"),
            (0x9a2, "tpm:session(1):authorization failure without lockout: the password is wrong (0x9a2)"),
            (0x184, "tpm:handle(1):value is out of range or not correct for the context (0x184)"),
            (0x14c, "tpm:there is a persistent object of this handle already (0x14c)"),
            (0x921, "tpm:TPM is in lockout: too many wrong passwords, or power cuts (0x921)"),
            (0xa000a, "tcti:IO failure (0xa000a)"),
            (0xb0902, "rmt:out of memory for objects (0xb0902)"),
            (0xc0902, "rm:out of memory for objects (0xc0902)"),
            (0xc000a, "rm:IO failure (0xc000a)"),
            (0x1ff, "tpm:parameter(1):unnamed response code (0x1ff)"),
        ] {
            assert!(Code(code).to_string().starts_with(text), "{:?}", Code(code));
        }
    }

    #[test]
    fn kinds_are_told_apart() {
        let kinds = |code: u32| {
            let code = Code(code);
            (code.is_absent(), code.is_busy(), code.is_full(), code.is_stale())
        };
        assert_eq!(kinds(0x18b), (true, false, false, true));
        assert_eq!(kinds(0x28b), (false, false, false, false), "of another handle");
        assert_eq!(kinds(0x922), (false, true, false, false));
        assert_eq!(kinds(0x902), (false, false, true, false));
        for layer in [0xb_0000, 0xc_0000] {
            assert_eq!(kinds(layer | 0x922), (false, true, false, false), "through a resource manager");
            assert_eq!(kinds(layer | 0x903), (false, false, true, false));
            assert_eq!(kinds(layer | 0x9a2), (false, false, false, false), "no password is tried twice");
            assert_eq!(kinds(layer | 0x00a), (false, false, false, true), "of the resource manager itself");
        }
        assert_eq!(kinds(0xb018b), (true, false, false, true));
        assert_eq!(
            kinds(0xc018b),
            (false, false, false, false),
            "the resource manager does not know what is persistent"
        );
        for broken in [0x7000a, 0x8000a, 0xa000a] {
            assert_eq!(kinds(broken), (false, false, false, true));
        }
        assert_eq!(kinds(0x90010), (false, false, false, false), "what cannot be marshaled never reached a TPM");
        assert_eq!(kinds(0xa0922), (false, false, false, true), "not the TPM's");
        assert!(Code(0xc0905).is_out_of_session_handles() && !Code(0x903).is_out_of_session_handles());
        assert_eq!(kinds(0x918), (false, false, false, true));
        assert_eq!(kinds(0x9a2), (false, false, false, false));
        assert_eq!(kinds(0x921), (false, false, false, false), "asking again would not help");
    }

    /// The wrapper keeps numbers to itself but for a text: a new version of it must not change that unnoticed.
    #[test]
    fn the_wrappers_errors_are_read() {
        let code = |error| match error {
            tss_esapi::Error::Tss2Error(code) => Code::from_wrapper(code),
            tss_esapi::Error::WrapperError(kind) => panic!("{kind}"),
        };
        // Versions of the library word it by one or the other: "buffer too small", "a buffer isn't large enough".
        let short = code(Public::unmarshall(&[]).unwrap_err());
        assert!([Code(0x9_0006), Code(0x9_0010)].contains(&short), "{short}");
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let nobody = TctiNameConf::from_str(&format!("swtpm:host=127.0.0.1,port={closed}")).unwrap();
        assert_eq!(code(Context::new(nobody).unwrap_err()), Code(0xa_000a));
    }
}
