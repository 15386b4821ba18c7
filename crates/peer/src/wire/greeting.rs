//! The first word of each side.

use model::ClusterId;
use model::NodeId;
use serde::Deserialize;
use serde::Serialize;

use super::DIALECT_MAX;
use super::DIALECT_MIN;
use crate::error::Refusal;
use crate::error::RefusalCode;
use crate::error::clean;

/// Longest name or version that is kept of a greeting.
const WORD_CHARS_MAX: usize = 64;

/// Which dialects a node speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dialects {
    /// The oldest.
    pub min: u16,
    /// The newest.
    pub max: u16,
}

/// What a connection is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Calls.
    Calls,
    /// One raw stream of this name.
    Stream(String),
    /// To join; the caller has no certificate yet.
    Join,
}

/// What the caller says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// What it speaks.
    pub dialects: Dialects,
    /// Version of its program, for people.
    #[serde(default)]
    pub version: String,
    /// The cluster it belongs to or, in a join, means.
    pub cluster: ClusterId,
    /// That cluster's name, for people.
    #[serde(default)]
    pub cluster_name: String,
    /// Who it is; must be the node of its certificate.
    pub node: NodeId,
    /// What the connection is for.
    pub purpose: Purpose,
}

/// What the called side answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The dialect from here on.
    pub dialect: u16,
    /// Version of its program, for people.
    #[serde(default)]
    pub version: String,
    /// Who it is.
    pub node: NodeId,
}

impl Default for Dialects {
    fn default() -> Self {
        Self { min: DIALECT_MIN, max: DIALECT_MAX }
    }
}

impl Dialects {
    /// The newest dialect that both speak.
    ///
    /// # Errors
    /// [`RefusalCode::NoCommonVersion`], saying who must be upgraded.
    pub fn common(self, theirs: Self, their_version: &str) -> Result<u16, Refusal> {
        let newest = self.max.min(theirs.max);
        if newest >= self.min && newest >= theirs.min {
            return Ok(newest);
        }
        let (word, hint) = if theirs.max < self.min {
            ("older", "upgrade that node first, one version at a time")
        } else {
            ("newer", "upgrade this node; nodes differ by at most one version")
        };
        Err(Refusal::new(
            RefusalCode::NoCommonVersion,
            format!(
                "the caller's Muster {} is {word} than this one understands (it speaks {} to {}, \
                 here it is {} to {})",
                clean(their_version, WORD_CHARS_MAX),
                theirs.min,
                theirs.max,
                self.min,
                self.max
            ),
            hint,
        ))
    }
}

impl Greeting {
    /// Reads a greeting.
    ///
    /// # Errors
    /// [`RefusalCode::Malformed`].
    pub fn decode(body: &[u8]) -> Result<Self, Refusal> {
        let mut greeting: Self = serde_json::from_slice(body)
            .map_err(|error| Refusal::malformed(format!("the greeting cannot be read: {error}")))?;
        greeting.version = clean(&greeting.version, WORD_CHARS_MAX);
        greeting.cluster_name = clean(&greeting.cluster_name, WORD_CHARS_MAX);
        if let Purpose::Stream(name) = &mut greeting.purpose {
            *name = clean(name, WORD_CHARS_MAX);
        }
        Ok(greeting)
    }
}

impl Welcome {
    /// Reads a welcome.
    ///
    /// # Errors
    /// [`RefusalCode::Malformed`].
    pub fn decode(body: &[u8]) -> Result<Self, Refusal> {
        let mut welcome: Self = serde_json::from_slice(body)
            .map_err(|error| Refusal::malformed(format!("the welcome cannot be read: {error}")))?;
        welcome.version = clean(&welcome.version, WORD_CHARS_MAX);
        Ok(welcome)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::any;
    use proptest::prelude::proptest;
    use uuid::Uuid;

    use super::*;

    fn greeting() -> Greeting {
        Greeting {
            dialects: Dialects::default(),
            version: "0.1.0".to_owned(),
            cluster: ClusterId::new(Uuid::from_u128(1)),
            cluster_name: "lab".to_owned(),
            node: NodeId::new(Uuid::from_u128(2)),
            purpose: Purpose::Stream("api".to_owned()),
        }
    }

    #[test]
    fn the_newest_common_dialect_is_taken() {
        let ours = Dialects { min: 2, max: 4 };
        assert_eq!(ours.common(Dialects { min: 1, max: 3 }, "x"), Ok(3));
        assert_eq!(ours.common(Dialects { min: 3, max: 9 }, "x"), Ok(4));
        let older = ours.common(Dialects { min: 1, max: 1 }, "0.0.1").unwrap_err();
        assert!(older.message.contains("0.0.1 is older"), "{older}");
        let newer = ours.common(Dialects { min: 5, max: 6 }, "9.0").unwrap_err();
        assert!(newer.message.contains("9.0 is newer"), "{newer}");
    }

    #[test]
    fn a_field_of_a_newer_version_is_ignored() {
        let mut json = serde_json::to_value(greeting()).unwrap();
        json["colour"] = "blue".into();
        assert_eq!(Greeting::decode(json.to_string().as_bytes()).unwrap(), greeting());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Greeting::decode(&bytes);
            let _ = Welcome::decode(&bytes);
        }

        #[test]
        fn a_greeting_with_one_changed_byte_is_read_without_a_panic(at in 0..400_usize, byte in any::<u8>()) {
            let mut bytes = serde_json::to_vec(&greeting()).unwrap();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = Greeting::decode(&bytes);
        }
    }
}
