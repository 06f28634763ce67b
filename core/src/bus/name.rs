//! Names on the bus, with the broker's rules.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, Result};

macro_rules! bus_name {
    ($(#[$doc:meta])* $name:ident, $field:literal, $rule:literal, |$text:ident| $holds:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            #[doc = concat!("Checks that the name ", $rule, ".")]
            ///
            /// # Errors
            /// `InvalidInput` with field and value.
            pub fn new(text: impl AsRef<str>) -> Result<Self> {
                let $text = text.as_ref();
                if $holds {
                    Ok(Self(Arc::from($text)))
                } else {
                    Err(Error::invalid(concat!("bus.", $field), $field, $text, $rule))
                }
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> {
                Self::new(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                crate::domain::from_text(deserializer, concat!("a ", $field))
            }
        }
    };
}

bus_name!(
    /// The name of a topic.
    TopicName,
    "topic",
    "must match [a-zA-Z0-9._-]{1,249} and be neither `.` nor `..`",
    |text| (1..=249).contains(&text.len())
        && text != "."
        && text != ".."
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
);
bus_name!(
    /// The name of a consumer group.
    GroupId,
    "group",
    "must be 1 to 249 printable characters",
    |text| (1..=249).contains(&text.len()) && !text.chars().any(char::is_control)
);
bus_name!(
    /// The name of a static member of a group: the same name after a restart is the same member, so that a quick
    /// restart moves no partitions.
    MemberId,
    "member",
    "must match [a-zA-Z0-9._-]{1,249} and be neither `.` nor `..`",
    |text| (1..=249).contains(&text.len())
        && text != "."
        && text != ".."
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
);
bus_name!(
    /// The name of a message header.
    HeaderName,
    "header",
    "must be 1 to 1024 bytes without NUL",
    |text| (1..=1024).contains(&text.len()) && !text.contains('\0')
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_brokers_rules() {
        for bad in ["", ".", "..", "a b", "a/b", "é", &"a".repeat(250)] {
            let error = TopicName::new(bad).unwrap_err();
            assert_eq!(
                (error.context_value("field"), error.context_value("value").is_some()),
                (Some("topic"), true)
            );
        }
        assert!(TopicName::new("crypto-prices.dlq").is_ok());
        assert!(
            GroupId::new("").is_err() && GroupId::new("a\nb").is_err() && GroupId::new("writer 1").is_ok()
        );
        assert!(HeaderName::new("a\0b").is_err() && HeaderName::new("traceparent").is_ok());
    }
}
