//! Names that users give to things.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

/// The longest name: a DNS label (RFC 1035, 2.3.4), because a VM's name is its name in the guest
/// network too.
pub(crate) const NAME_CHARS_MAX: usize = 63;

/// A name of a VM, image, network or token: 1 to 63 letters, digits, `.`, `_` or `-`, beginning
/// with a letter or digit, and not a UUID. Compared without regard to case where it must be unique.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, min_length = 1, max_length = 63)]
pub struct Name(String);

/// Why a text cannot be a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("a name cannot be empty")]
    Empty,
    /// More than 63 characters.
    #[error("a name has at most 63 characters, this one has {0}")]
    TooLong(usize),
    /// A character outside the set.
    #[error(
        "'{0}' cannot stand in a name; use letters, digits, '-', '_' and '.', beginning with a \
         letter or a digit"
    )]
    BadChar(char),
    /// A UUID: it could not be told from an id.
    #[error("a name cannot be a UUID, since it could not be told from an id")]
    LooksLikeId,
}

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The form in which names are compared for uniqueness.
    pub fn key(&self) -> String {
        self.0.to_ascii_lowercase()
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let first = text.chars().next().ok_or(NameError::Empty)?;
        let count = text.chars().count();
        if count > NAME_CHARS_MAX {
            return Err(NameError::TooLong(count));
        }
        if !first.is_ascii_alphanumeric() {
            return Err(NameError::BadChar(first));
        }
        if let Some(bad) = text.chars().find(|c| !is_name_char(*c)) {
            return Err(NameError::BadChar(bad));
        }
        if Uuid::parse_str(text).is_ok() {
            return Err(NameError::LooksLikeId);
        }
        Ok(Self(text.to_owned()))
    }
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Name({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_a_folder_or_confuse_an_id_are_refused() {
        assert_eq!("".parse::<Name>(), Err(NameError::Empty));
        assert_eq!("a".repeat(300).parse::<Name>(), Err(NameError::TooLong(300)));
        assert_eq!("../etc".parse::<Name>(), Err(NameError::BadChar('.')));
        assert_eq!("a/b".parse::<Name>(), Err(NameError::BadChar('/')));
        assert_eq!("a b".parse::<Name>(), Err(NameError::BadChar(' ')));
        assert_eq!("a\0".parse::<Name>(), Err(NameError::BadChar('\0')));
        assert_eq!("ø".parse::<Name>(), Err(NameError::BadChar('ø')));
        let uuid = "0191f6a0-7c1e-7d2a-8f00-0123456789ab";
        assert_eq!(uuid.parse::<Name>(), Err(NameError::LooksLikeId));
        assert!(serde_json::from_str::<Name>("\"a/b\"").is_err());
    }

    #[test]
    fn ordinary_names_pass_and_compare_without_case() {
        let name: Name = "SQL-01.prod".parse().unwrap();
        assert_eq!(name.as_str(), "SQL-01.prod");
        assert_eq!(name.key(), "sql-01.prod");
    }
}
