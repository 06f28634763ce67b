//! Names on the bus, with the rules of the broker.

use crate::domain::text_name;

text_name!(
    /// The name of a topic.
    TopicName,
    "bus.topic",
    "topic",
    "must match [a-zA-Z0-9._-]{1,249} and be neither '.' nor '..'",
    |text| (1..=249).contains(&text.len())
        && text != "."
        && text != ".."
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
);
text_name!(
    /// The name of a consumer group.
    GroupId,
    "bus.group",
    "group",
    "must be 1 to 249 printable characters",
    |text| (1..=249).contains(&text.len()) && !text.chars().any(char::is_control)
);
text_name!(
    /// The name of a static member of a group, Kafka's `group.instance.id`. A process that restarts with the same name
    /// is the same member, so a quick restart moves no partitions.
    GroupInstanceId,
    "bus.member",
    "member",
    "must match [a-zA-Z0-9._-]{1,249} and be neither '.' nor '..'",
    |text| (1..=249).contains(&text.len())
        && text != "."
        && text != ".."
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
);
text_name!(
    /// The name of a message header. An empty name is valid, and the length has no limit.
    HeaderName,
    "bus.header",
    "header",
    "must not contain NUL",
    |text| !text.contains('\0')
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
        assert!(HeaderName::new("").is_ok() && HeaderName::new("n".repeat(100_000)).is_ok());
    }
}
