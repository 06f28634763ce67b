//! Types that are represented as text: their conversions and deserialisation, and validated names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserializer, de};

/// Deserialises a value from a string with its `FromStr`, without copying the string.
pub(crate) fn from_text<'de, D, T>(deserializer: D, expecting: &'static str) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err = crate::Error>,
{
    from_text_with(deserializer, expecting, T::from_str)
}

/// Deserialises a value from a string with a function, without copying the string.
pub(crate) fn from_text_with<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    expecting: &'static str,
    parse: fn(&str) -> crate::Result<T>,
) -> Result<T, D::Error> {
    struct Text<T>(&'static str, fn(&str) -> crate::Result<T>);

    impl<T> de::Visitor<'_> for Text<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            self.1(text).map_err(E::custom)
        }
    }

    deserializer.deserialize_str(Text(expecting, parse))
}

/// Implements `TryFrom<&str>` and `TryFrom<String>` for a type that parses text, and with `static` also `from_static`.
/// Generic parameters are in brackets before the type.
macro_rules! text_conversions {
    (static [$($generics:tt)*] $name:ty) => {
        impl<$($generics)*> $name {
            /// Creates the value of a literal.
            ///
            /// # Panics
            /// If the text is not valid. Parse any text that is not a literal, because parsing returns the error.
            #[must_use]
            #[track_caller]
            pub fn from_static(text: &'static str) -> Self {
                text.parse().unwrap_or_else(|error: $crate::Error| panic!("{}", error.report()))
            }
        }

        $crate::domain::text_conversions!([$($generics)*] $name);
    };
    (static $name:ty) => {
        $crate::domain::text_conversions!(static [] $name);
    };
    ([$($generics:tt)*] $name:ty) => {
        impl<$($generics)*> TryFrom<&str> for $name {
            type Error = $crate::Error;
            fn try_from(text: &str) -> $crate::Result<Self> {
                text.parse()
            }
        }

        impl<$($generics)*> TryFrom<String> for $name {
            type Error = $crate::Error;
            fn try_from(text: String) -> $crate::Result<Self> {
                text.parse()
            }
        }
    };
    ($name:ty) => {
        $crate::domain::text_conversions!([] $name);
    };
}
pub(crate) use text_conversions;

/// Defines a validated name with shared text. Cloning a name allocates nothing.
///
/// `text_name!(/// Doc. Name, "error.code", "field", "rule in words", |text| rule)`
macro_rules! text_name {
    ($(#[$doc:meta])* $name:ident, $code:literal, $field:literal, $rule:literal, |$text:ident| $holds:expr) => {
        $(#[$doc])*
        ///
        #[doc = concat!("The text `", $rule, "`.")]
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(std::sync::Arc<str>);

        $crate::domain::text_name!(
            @impl [] [$name], $code, $field, $rule, concat!("a ", $field), |$text| $holds);
    };
    (@impl [$($generics:tt)*] [$name:ty], $code:literal, $field:literal, $rule:expr, $expecting:expr,
        |$text:ident| $holds:expr) => {
        impl<$($generics)*> $name {
            /// Creates the name if the text is valid. The text is not normalised, so names are case-sensitive.
            ///
            /// # Errors
            /// `InvalidInput` with the field and the value.
            pub fn new(text: impl AsRef<str>) -> $crate::Result<Self> {
                let $text = text.as_ref();
                if $holds {
                    Ok(Self(std::sync::Arc::from($text)))
                } else {
                    Err($crate::Error::invalid($code, $field, $text, $rule))
                }
            }

            /// Returns the text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        $crate::domain::text_conversions!(static [$($generics)*] $name);

        impl<$($generics)*> AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl<$($generics)*> From<$name> for String {
            fn from(name: $name) -> Self {
                name.as_str().to_owned()
            }
        }

        /// Shares the text. Allocates nothing.
        impl<$($generics)*> From<$name> for std::sync::Arc<str> {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        /// Maps with this key can be searched by text.
        impl<$($generics)*> std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl<$($generics)*> std::str::FromStr for $name {
            type Err = $crate::Error;
            fn from_str(text: &str) -> $crate::Result<Self> {
                Self::new(text)
            }
        }

        impl<$($generics)*> std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(&self.0)
            }
        }

        impl<$($generics)*> std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl<$($generics)*> serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de, $($generics)*> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::domain::from_text(deserializer, $expecting)
            }
        }
    };
}
pub(crate) use text_name;
