//! The join token: one word that an administrator carries from a member to a new host.
//!
//! ```text
//!   text   = "mjt_" base64url(bytes)
//!   bytes  = version u8 | cluster id 16 | SHA-256 of the CA 32 | secret 32 | count u8
//!            | count times (length u8, "host:port") | CRC-32C of all before, little endian
//! ```
//!
//! | version | change |
//! | --- | --- |
//! | 1 | first |
//!
//! The checksum tells a typing error from a token that is refused; it is not what protects it.
//! The digest of the CA protects the new host from a false cluster, the secret protects the
//! cluster from false hosts. The state keeps only the secret's digest.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use model::ClusterId;
use sha2::Digest;
use sha2::Sha256;
use uuid::Uuid;

/// How each token begins, so that people and secret scanners know it.
const PREFIX: &str = "mjt_";

const VERSION: u8 = 1;

/// Addresses in a token: every cluster network of a node or two.
pub const ADDRESSES_MAX: usize = 8;

/// The longest token: eight IPv6 addresses with ports need 700 characters.
const TEXT_CHARS_MAX: usize = 1_024;

/// The random part of a token.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The cluster.
    pub cluster: ClusterId,
    /// SHA-256 of the CA's certificate.
    pub ca: [u8; 32],
    /// The secret.
    pub secret: Secret,
    /// Peer ports of members, one to eight.
    pub addresses: Vec<SocketAddr>,
}

/// Why a text is not a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not begin like one.
    #[error("this is not a join token (those begin with {PREFIX}); make one: muster cluster token")]
    NotOne,
    /// A character that cannot be, or a part is missing or added.
    #[error("the join token was not copied as it is ({0}); copy the whole word again")]
    Miscopied(&'static str),
    /// A newer version made it.
    #[error("the join token has version {0}, which this Muster does not know; upgrade this host")]
    TooNew(u8),
}

impl Secret {
    /// A new one.
    ///
    /// # Errors
    /// The host gives no random numbers.
    pub fn create() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// In hexadecimal, as it goes over the wire.
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }

    /// SHA-256 of the hexadecimal form: what the state keeps.
    pub fn digest(&self) -> String {
        Self::digest_of(&self.to_hex())
    }

    /// The digest of a secret that came over the wire.
    pub fn digest_of(secret_hex: &str) -> String {
        hex::encode(Sha256::digest(secret_hex.as_bytes()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(self.cluster.uuid().as_bytes());
        bytes.extend_from_slice(&self.ca);
        bytes.extend_from_slice(&self.secret.0);
        let addresses = &self.addresses[..self.addresses.len().min(ADDRESSES_MAX)];
        bytes.push(u8::try_from(addresses.len()).unwrap_or(0));
        for address in addresses {
            let text = address.to_string();
            bytes.push(u8::try_from(text.len()).unwrap_or(0));
            bytes.extend_from_slice(text.as_bytes());
        }
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        // Terminals and mails break long words.
        let text: String =
            text.chars().filter(|c| !c.is_whitespace()).take(TEXT_CHARS_MAX + 1).collect();
        let body = text.strip_prefix(PREFIX).ok_or(TokenError::NotOne)?;
        if text.len() > TEXT_CHARS_MAX {
            return Err(TokenError::Miscopied("it is too long"));
        }
        let bytes = URL_SAFE_NO_PAD
            .decode(body)
            .map_err(|_| TokenError::Miscopied("a character is missing or cannot be"))?;
        let (bytes, sum) =
            bytes.split_last_chunk::<4>().ok_or(TokenError::Miscopied("it is too short"))?;
        if crc32c::crc32c(bytes).to_le_bytes() != *sum {
            return Err(TokenError::Miscopied("its checksum does not hold"));
        }
        let mut rest = Cursor(bytes);
        let [version] = rest.take::<1>()?;
        if version != VERSION {
            return Err(TokenError::TooNew(version));
        }
        let cluster = ClusterId::new(Uuid::from_bytes(rest.take()?));
        let ca = rest.take()?;
        let secret = Secret(rest.take()?);
        let [count] = rest.take::<1>()?;
        if usize::from(count) > ADDRESSES_MAX || count == 0 {
            return Err(TokenError::Miscopied("the number of its addresses cannot be"));
        }
        let mut addresses = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let [length] = rest.take::<1>()?;
            let text = rest.bytes(usize::from(length))?;
            let address = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
            addresses.push(address.ok_or(TokenError::Miscopied("an address is none"))?);
        }
        if !rest.0.is_empty() {
            return Err(TokenError::Miscopied("something follows it"));
        }
        Ok(Self { cluster, ca, secret, addresses })
    }
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], TokenError> {
        let (head, rest) =
            self.0.split_first_chunk::<N>().ok_or(TokenError::Miscopied("it is too short"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], TokenError> {
        let (head, rest) =
            self.0.split_at_checked(count).ok_or(TokenError::Miscopied("it is too short"))?;
        self.0 = rest;
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::any;
    use proptest::prelude::prop_assert;
    use proptest::prelude::prop_assert_eq;
    use proptest::prelude::proptest;

    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            cluster: ClusterId::new(Uuid::from_u128(7)),
            ca: [3; 32],
            secret: Secret([9; 32]),
            addresses: vec!["10.0.0.1:7444".parse().unwrap(), "[fd00::1]:7444".parse().unwrap()],
        }
    }

    #[test]
    fn a_token_survives_a_line_break() {
        let text = token().to_string();
        let (a, b) = text.split_at(40);
        assert_eq!(format!(" {a}\r\n  {b}\n").parse::<JoinToken>().unwrap(), token());
    }

    #[test]
    fn every_single_typing_error_is_told() {
        let text = token().to_string();
        for at in PREFIX.len()..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let typed = String::from_utf8(bytes).unwrap();
            let error = typed.parse::<JoinToken>().unwrap_err();
            assert!(matches!(error, TokenError::Miscopied(_)), "{at}: {error}");
            let cut: String = text.chars().take(at).collect();
            assert!(matches!(cut.parse::<JoinToken>(), Err(TokenError::Miscopied(_))));
        }
        assert!(matches!("hello".parse::<JoinToken>(), Err(TokenError::NotOne)));
    }

    #[test]
    fn a_newer_token_asks_for_an_upgrade() {
        let mut bytes = vec![9, 1, 2, 3];
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes));
        assert_eq!(text.parse::<JoinToken>(), Err(TokenError::TooNew(9)));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in ".{0,200}") {
            let _ = text.parse::<JoinToken>();
            let _ = format!("{PREFIX}{text}").parse::<JoinToken>();
        }

        #[test]
        fn any_bytes_with_a_right_checksum_are_read_without_a_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
            versioned in any::<bool>(),
        ) {
            if versioned && !bytes.is_empty() {
                bytes[0] = VERSION;
            }
            bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
            let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&bytes));
            if let Ok(token) = text.parse::<JoinToken>() {
                prop_assert!(token.addresses.len() <= ADDRESSES_MAX);
                prop_assert_eq!(token.to_string().parse::<JoinToken>().unwrap(), token);
            }
        }
    }
}
