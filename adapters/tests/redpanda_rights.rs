//! Principals with few permissions: the operations that they may use, and the groups that they see as hidden.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod redpanda_rig;
mod servers;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::time::Duration;

use libtest_mimic::Arguments;
use qi_adapters::config::SaslMechanism;
use qi_adapters::redpanda::RedpandaBus;
use qi_core::bus::{
    GroupId, GroupInfo, GroupQuery, GroupState, Message, MessageBus, MessageBusExt, SubscribeRequest,
    TopicInfo, TopicName, TopicSpec, TopicState,
};
use qi_core::{ErrorKind, Result, Selection};
use redpanda_rig::tools::tool;
use redpanda_rig::{Brokers, config};
use servers::{Spare, spare_trial};
use tokio::time::Instant;

const PASSWORD: &str = "a-secret-of-this-test";
const USERS: [&str; 3] = ["writer", "watcher", "nobody"];

fn main() {
    let brokers = Brokers::redpanda();
    let trials = vec![
        spare_trial(&brokers, "a_principal_without_create_uses_existing_topics", topics),
        spare_trial(&brokers, "hidden_groups_fail_no_other_group", groups),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

/// Restarts the broker with an authorizer. Returns the address for users with a password. Every user of the plain
/// address is an administrator.
async fn with_authorizer(spare: Spare) -> (Spare, String) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let folder = tempfile::tempdir().unwrap();
    let users = USERS.map(|user| format!(" user_{user}=\"{PASSWORD}\"")).concat();
    let settings = folder.path().join("settings");
    let text = format!(
        "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PASSWORD:SASL_PLAINTEXT\n\
         sasl.enabled.mechanisms=PLAIN\n\
         listener.name.password.plain.sasl.jaas.config=\
         org.apache.kafka.common.security.plain.PlainLoginModule required{users};\n\
         authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
         super.users=User:ANONYMOUS\n"
    );
    std::fs::write(&settings, text).unwrap();
    let spare = spare.run_action("kill").await;
    let spare = spare.run_action(format!("start PASSWORD://{address} {}", settings.display())).await;
    (spare, address)
}

fn bus_of(address: &str, user: &str) -> RedpandaBus {
    let mut config = config(address);
    config.sasl.mechanism = Some(SaslMechanism::Plain);
    config.sasl.username = Some(user.to_owned());
    config.sasl.password = Some(PASSWORD.to_owned().into());
    RedpandaBus::open(config).unwrap()
}

async fn allow(brokers: &Brokers, user: &str, what: &str) {
    let options = format!("--add --allow-principal User:{user} {what}");
    tool(brokers, "AclCommand", &options, "").await;
}

fn name(text: &str) -> TopicName {
    TopicName::new(text).unwrap()
}

fn spec(text: &str) -> TopicSpec {
    TopicSpec::new(name(text), 2).unwrap().with_retention(Duration::from_hours(48))
}

/// Repeats a query until a change of the permissions has reached the broker.
async fn wait_until<T>(mut ask: impl AsyncFnMut() -> Result<T>, done: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let answer = ask().await.unwrap();
        if done(&answer) || Instant::now() >= deadline {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Returns the visible topics, and whether their settings are visible.
fn visible(topics: &[TopicInfo]) -> Vec<(&str, bool)> {
    topics.iter().map(|info| (info.name.as_str(), info.settings.is_some())).collect()
}

async fn topics(brokers: Brokers, spare: Spare) {
    let (spare, address) = with_authorizer(spare).await;
    let root = RedpandaBus::open(brokers.config()).unwrap();
    let specs = ["qi-prices", "qi-quotes", "other-secret", "other-visible"].map(spec);
    for outcome in root.create_topics(&specs).await.unwrap() {
        outcome.result.unwrap();
    }
    let operations = "--operation Describe --operation DescribeConfigs --operation Read --operation Write";
    allow(&brokers, "writer", &format!("--resource-pattern-type prefixed --topic qi- {operations}")).await;
    allow(&brokers, "writer", "--group writer --operation Read").await;
    allow(&brokers, "writer", "--topic other-visible --operation Describe").await;

    let bus = bus_of(&address, "writer");
    let found = wait_until(async || bus.topics().await, |found| found.len() == 3).await;
    assert_eq!(visible(&found), [("other-visible", false), ("qi-prices", true), ("qi-quotes", true)]);
    assert!(found.iter().all(|info| info.partitions.len() == 2));

    let mut other_retention = specs[1].clone();
    other_retention.retention = Some(Duration::from_hours(24));
    let mut other_partitions = specs[0].clone();
    other_partitions.partitions = 3;
    let mut unknown_settings = specs[3].clone();
    unknown_settings.retention = Some(Duration::from_hours(1));
    let asked = [
        specs[0].clone(),
        other_retention,
        unknown_settings,
        spec("qi-missing"),
        specs[2].clone(),
        other_partitions,
    ];
    let outcomes = bus.create_topics(&asked).await.unwrap();
    let results: Vec<_> = outcomes.into_iter().map(|outcome| outcome.result).collect();
    let same = TopicState::Existed { differs: vec![], settings_hidden: false };
    assert_eq!(results[0].as_ref().unwrap(), &same);
    let Ok(TopicState::Existed { differs, settings_hidden: false }) = &results[1] else {
        panic!("{results:?}")
    };
    assert_eq!(differs.iter().map(|diff| diff.name.as_str()).collect::<Vec<_>>(), ["retention.ms"]);
    let hidden = TopicState::Existed { differs: vec![], settings_hidden: true };
    assert_eq!(results[2].as_ref().unwrap(), &hidden);
    let kinds: Vec<_> = results[3..].iter().map(|result| result.as_ref().unwrap_err().kind()).collect();
    assert_eq!(kinds, [ErrorKind::Unauthorized, ErrorKind::Unauthorized, ErrorKind::Conflict]);
    assert_eq!(results[3].as_ref().unwrap_err().context_value("topic"), Some("qi-missing"));

    bus.send(&[Message::new(name("qi-prices"), "x")]).await.unwrap();
    let request = SubscribeRequest::new(GroupId::new("writer").unwrap(), [name("qi-prices")]).unwrap();
    let mut sub = bus.subscribe(request).await.unwrap();
    let batch = sub.recv(1, Duration::from_secs(10)).await.unwrap();
    assert_eq!(batch.len(), 1);
    sub.commit(batch.offsets()).await.unwrap();
    sub.close().await.unwrap();

    // A principal may have the permission to create a topic but not to describe it. The topic exists,
    // although a second call fails.
    allow(&brokers, "nobody", "--topic qi-new --operation Create").await;
    let nobody = bus_of(&address, "nobody");
    assert_eq!(visible(&nobody.topics().await.unwrap()), []);
    let created = async || Ok(nobody.create_topics(&[spec("qi-new")]).await?.remove(0).result.is_ok());
    assert!(wait_until(created, |created| *created).await);
    let again = nobody.create_topics(&[spec("qi-new")]).await.unwrap().remove(0).result;
    assert_eq!(again.unwrap_err().kind(), ErrorKind::Unauthorized);
    assert!(root.topics().await.unwrap().iter().any(|info| info.name == name("qi-new")));
    for bus in [root, bus, nobody] {
        bus.close().await.unwrap();
    }
    drop(spare);
}

/// Returns the state of each group, its topics, and its lag.
fn summary(groups: &[GroupInfo]) -> BTreeMap<&str, (GroupState, Vec<&str>, Option<u64>)> {
    let shown = groups.iter().map(|info| {
        let topics = info.partitions.iter().map(|p| p.partition.topic.as_str()).collect();
        (info.id.as_str(), (info.state, topics, info.lag()))
    });
    shown.collect()
}

async fn groups(brokers: Brokers, spare: Spare) {
    let (spare, address) = with_authorizer(spare).await;
    let root = RedpandaBus::open(brokers.config()).unwrap();
    let one = |text: &str| TopicSpec::new(name(text), 1).unwrap();
    for outcome in root.create_topics(&["seen", "secret"].map(one)).await.unwrap() {
        outcome.result.unwrap();
    }
    root.send(&["seen", "secret"].map(|topic| Message::new(name(topic), "x"))).await.unwrap();
    let mut members = Vec::new();
    for group in ["ours", "theirs"] {
        let group = GroupId::new(group).unwrap();
        let request = SubscribeRequest::new(group, [name("seen"), name("secret")]).unwrap();
        let mut sub = root.subscribe(request).await.unwrap();
        let mut received = 0;
        while received < 2 {
            let batch = sub.recv(10, Duration::from_secs(10)).await.unwrap();
            received += batch.len();
            sub.commit(batch.offsets()).await.unwrap();
        }
        members.push(sub);
    }
    let options = "--topic seen --from-beginning --max-messages 1 --timeout-ms 15000 --group modern \
                   --command-property group.protocol=consumer";
    tool(&brokers, "consumer.ConsoleConsumer", options, "").await;

    allow(&brokers, "watcher", "--topic seen --operation Describe").await;
    allow(&brokers, "watcher", "--group ours --operation Describe").await;
    let watcher = bus_of(&address, "watcher");
    let query = |groups| GroupQuery::new(groups);
    let all = query(Selection::All);
    let found = wait_until(async || watcher.groups(&all).await, |found| !found.is_empty()).await;
    let ours = ("ours", (GroupState::Stable, vec!["seen"], Some(0)));
    assert_eq!(
        summary(&found),
        BTreeMap::from([ours.clone()]),
        "only groups that may be described are listed"
    );

    // The permission to describe the cluster lists the groups of other principals, but does not describe them.
    allow(&brokers, "watcher", "--cluster --operation Describe").await;
    let found = wait_until(async || watcher.groups(&all).await, |found| found.len() == 3).await;
    let hidden = (GroupState::Hidden, vec![], None);
    let wanted = BTreeMap::from([ours.clone(), ("theirs", hidden.clone()), ("modern", hidden.clone())]);
    assert_eq!(summary(&found), wanted);
    let named = query(Selection::only(["ours", "theirs"].map(|id| GroupId::new(id).unwrap())).unwrap());
    for _ in 0..2 {
        let found = watcher.groups(&named).await.unwrap();
        assert_eq!(summary(&found), BTreeMap::from([ours.clone(), ("theirs", hidden.clone())]));
    }
    allow(&brokers, "watcher", "--group modern --operation Describe").await;
    let modern = query(Selection::one(GroupId::new("modern").unwrap()));
    let described = |found: &Vec<GroupInfo>| found.iter().all(|info| info.state == GroupState::NotDescribed);
    let found = wait_until(async || watcher.groups(&modern).await, described).await;
    let not_described = (GroupState::NotDescribed, vec!["seen"], None);
    assert_eq!(summary(&found), BTreeMap::from([("modern", not_described)]));
    assert_eq!(found[0].partitions[0].lag, Some(0));

    // A topic named in the query must be visible.
    let seen = named.clone().with_topics(Selection::one(name("seen")));
    assert_eq!(watcher.groups(&seen).await.unwrap().len(), 2);
    let secret = named.with_topics(Selection::one(name("secret")));
    let error = watcher.groups(&secret).await.unwrap_err();
    assert_eq!((error.kind(), error.context_value("topic")), (ErrorKind::Unauthorized, Some("secret")));

    // A principal without permissions sees no group, which is not an error.
    let nobody = bus_of(&address, "nobody");
    assert_eq!(nobody.groups(&all).await.unwrap(), []);
    assert_eq!(visible(&nobody.topics().await.unwrap()), []);
    for mut member in members {
        member.close().await.unwrap();
    }
    for bus in [root, watcher, nobody] {
        bus.close().await.unwrap();
    }
    drop(spare);
}
