//! Every method of `MessageBus`, forwarded once.

use std::sync::Arc;

use futures::future::BoxFuture;

use super::{Intercept, Layered, LayeredSubscription, through};
use crate::bus::{
    BusInfo, BusStatus, CloseReport, GroupInfo, GroupQuery, Message, MessageBus, PublishOptions,
    PublishReport, Read, Subscribe, Subscription, TopicInfo, TopicName, TopicOutcome, TopicSpec,
};
use crate::{Operation, Result};

impl<B, X: Intercept> Layered<B, X> {
    fn wrap(&self, inner: Box<dyn Subscription>) -> Box<dyn Subscription> {
        Box::new(LayeredSubscription::new(inner, Arc::clone(&self.layer)))
    }
}

#[deny(clippy::missing_trait_methods)]
impl<B: MessageBus, X: Intercept> MessageBus for Layered<B, X> {
    fn info(&self) -> BusInfo {
        self.inner.info()
    }

    fn publish<'a, 'b, 'c, 'f>(
        &'a self,
        batch: &'b [Message],
        options: &'c PublishOptions,
    ) -> BoxFuture<'f, Result<PublishReport>>
    where
        'a: 'f,
        'b: 'f,
        'c: 'f,
        Self: 'f,
    {
        self.layer.publish(&self.inner, batch, options)
    }

    fn subscribe<'a, 'f>(&'a self, request: Subscribe) -> BoxFuture<'f, Result<Box<dyn Subscription>>>
    where
        'a: 'f,
        Self: 'f,
    {
        Box::pin(async move {
            let attempt = || self.inner.subscribe(request.clone());
            Ok(self.wrap(self.layer.call(Operation::Subscribe, attempt).await?))
        })
    }

    fn read<'a, 'f>(&'a self, request: Read) -> BoxFuture<'f, Result<Box<dyn Subscription>>>
    where
        'a: 'f,
        Self: 'f,
    {
        Box::pin(async move {
            let attempt = || self.inner.read(request.clone());
            Ok(self.wrap(self.layer.call(Operation::Read, attempt).await?))
        })
    }

    through! {
        create_topics(specs: [TopicSpec]) -> Vec<TopicOutcome> = CreateTopics;
        delete_topics(names: [TopicName]) -> Vec<TopicOutcome> = DeleteTopics;
        topics() -> Vec<TopicInfo> = Topics;
        groups(query: GroupQuery) -> Vec<GroupInfo> = Groups;
        ping() -> BusStatus = BusPing;
        close() -> CloseReport = BusClose;
    }
}
