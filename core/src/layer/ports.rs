//! The three ports, implemented for [`Layered`] and [`Retry`], and `PriceStore` for [`PurgeGuard`]. Macros list each
//! method once.

use std::time::Duration;

use futures::future::BoxFuture;

use super::{Call, Layer, Layered, PurgeGuard, Retry};
use crate::bus::{
    Assignment, Batch, BusInfo, BusPingReport, CloseReport, Committed, GroupInfo, GroupQuery, Message,
    MessageBus, Offsets, PublishOptions, PublishReport, ReaderRequest, SeekTo, SubscribeRequest,
    Subscription, TopicInfo, TopicName, TopicOutcome, TopicPartition, TopicSpec,
};
use crate::record::{Dataset, Records};
use crate::store::{
    ArrowPage, BarQuery, DeleteQuery, InsertReport, LatestRequest, MaintainRequest, MaintenanceReport, Page,
    PriceStore, RangeRequest, RangeStats, RecordPage, SchemaReport, SeriesRequest, SeriesSummary, StatsQuery,
    StoreInfo, StorePingReport,
};
use crate::{Bar, Operation, Result, Timestamp};

/// Generates methods of a port with the signatures that `async_trait` expects, so that a method can return an inner
/// future without another box. `$body` is the macro that generates the bodies. `[mut]` is for methods with `&mut self`.
macro_rules! methods {
    ($body:ident $receiver:tt $(
        $method:ident($($argument:tt)*) -> $output:ty = $operation:ident $([$dataset:expr $(, $records:expr)?])?;
    )*) => {$(
        methods! {@ $body $receiver $method ($($argument)*)
            $output, Call::new(Operation::$operation)$(.with_dataset($dataset)$(.with_records($records))?)? }
    )*};
    (@ $body:ident $receiver:tt $method:ident ($a:ident: &$A:ty) $($rest:tt)*) => {
        methods! {@@ $body $receiver $method ['b] ($a: &'b $A) $($rest)* }
    };
    (@ $body:ident $receiver:tt $method:ident ($a:ident: &$A:ty, $b:ident: &$B:ty) $($rest:tt)*) => {
        methods! {@@ $body $receiver $method ['b 'c] ($a: &'b $A, $b: &'c $B) $($rest)* }
    };
    (@ $body:ident $receiver:tt $method:ident ($($a:ident: $A:ty),*) $($rest:tt)*) => {
        methods! {@@ $body $receiver $method [] ($($a: $A),*) $($rest)* }
    };
    (@@ $body:ident [$($mut:tt)?] $method:ident [$($lifetime:lifetime)*] ($($a:ident: $A:ty),*)
        $output:ty, $call:expr) => {
        fn $method<'a, $($lifetime,)* 'f>(&'a $($mut)? self, $($a: $A),*) -> BoxFuture<'f, Result<$output>>
        where
            'a: 'f,
            $($lifetime: 'f,)*
            Self: 'f,
        {
            $body!(self, $call, $method($($a),*))
        }
    };
}

macro_rules! price_store {
    ($body:ident) => {
        fn info(&self) -> StoreInfo {
            self.inner.info()
        }

        methods! { $body []
            ensure_schema() -> SchemaReport = EnsureSchema;
            migrate_schema() -> SchemaReport = EnsureSchema;
            plan_schema() -> Vec<String> = PlanSchema;
            ping() -> StorePingReport = StorePing;
            insert(batch: &dyn Records) -> InsertReport = Insert[batch.dataset(), batch.len()];
            range(request: &RangeRequest) -> RecordPage = Range[request.dataset];
            range_arrow(request: &RangeRequest) -> Option<ArrowPage> = Range[request.dataset];
            latest(request: &LatestRequest) -> RecordPage = Latest[request.dataset];
            derived_bars(query: &BarQuery) -> Page<Bar> = DerivedBars;
            stats(query: &StatsQuery) -> Option<RangeStats> = Stats;
            series(request: &SeriesRequest) -> Page<SeriesSummary> = Series[request.dataset];
            delete_range(query: &DeleteQuery) -> () = DeleteRange[query.dataset];
            purge_before(dataset: Dataset, cutoff: Timestamp) -> () = PurgeBefore[dataset];
            maintain(request: &MaintainRequest) -> MaintenanceReport = Maintain;
            close() -> () = StoreClose;
        }
    };
}

macro_rules! message_bus {
    ($body:ident) => {
        fn info(&self) -> BusInfo {
            self.inner.info()
        }

        methods! { $body []
            publish(batch: &[Message], options: &PublishOptions) -> PublishReport = Publish;
            subscribe(request: SubscribeRequest) -> Box<dyn Subscription> = Subscribe;
            open_reader(request: ReaderRequest) -> Box<dyn Subscription> = OpenReader;
            create_topics(specs: &[TopicSpec]) -> Vec<TopicOutcome> = CreateTopics;
            delete_topics(names: &[TopicName]) -> Vec<TopicOutcome> = DeleteTopics;
            topics() -> Vec<TopicInfo> = Topics;
            groups(query: &GroupQuery) -> Vec<GroupInfo> = Groups;
            ping() -> BusPingReport = BusPing;
            close() -> CloseReport = BusClose;
        }
    };
}

macro_rules! subscription {
    ($body:ident) => {
        methods! { $body [mut]
            recv(max: usize, wait: Duration) -> Batch = Recv;
            commit(offsets: &Offsets) -> Committed = Commit;
            seek(to: &[(TopicPartition, SeekTo)]) -> () = Seek;
            pause(partitions: &[TopicPartition]) -> () = Pause;
            resume(partitions: &[TopicPartition]) -> () = Resume;
            assignment() -> Assignment = Assignment;
            close() -> () = SubscriptionClose;
        }
    };
}

/// Passes the call to the layer.
macro_rules! layered {
    ($self:ident, $call:expr, publish($batch:ident, $options:ident)) => {
        $self.layer.publish(&$self.inner, $batch, $options)
    };
    ($self:ident, $call:expr, recv($max:ident, $wait:ident)) => {
        $self.layer.recv(&mut $self.inner, $max, $wait)
    };
    ($self:ident, $call:expr, subscribe($request:ident)) => { layered!(@ $self, $call, subscribe, $request) };
    ($self:ident, $call:expr, open_reader($request:ident)) => { layered!(@ $self, $call, open_reader, $request) };
    (@ $self:ident, $call:expr, $open:ident, $request:ident) => {
        Box::pin(async move {
            let subscription = $self.layer.call($call, $self.inner.$open($request)).await?;
            Ok($self.wrap(subscription))
        })
    };
    ($self:ident, $call:expr, $method:ident($($argument:ident),*)) => {
        $self.layer.call($call, $self.inner.$method($($argument),*))
    };
}

/// Repeats the call while its error is retryable and an attempt is left.
macro_rules! retried {
    ($self:ident, $call:expr, publish($batch:ident, $options:ident)) => {
        Box::pin($self.publish_with_retry($batch, $options))
    };
    ($self:ident, $call:expr, recv($max:ident, $wait:ident)) => { $self.inner.recv($max, $wait) };
    ($self:ident, $call:expr, subscribe($request:ident)) => { retried!(@ $self, $call, subscribe, $request) };
    ($self:ident, $call:expr, open_reader($request:ident)) => { retried!(@ $self, $call, open_reader, $request) };
    (@ $self:ident, $call:expr, $open:ident, $request:ident) => {
        Box::pin(async move {
            Ok($self.wrap(retried!(@@ $self, $call, $self.inner.$open($request.clone()))))
        })
    };
    (@@ $self:ident, $call:expr, $attempt:expr) => {{
        let mut attempts = $self.schedule.begin($call.operation);
        loop {
            match $attempt.await {
                Ok(answer) => break answer,
                Err(error) => attempts.failed(error).await?,
            }
        }
    }};
    ($self:ident, $call:expr, $method:ident($($argument:ident),*)) => {
        Box::pin(async move { Ok(retried!(@@ $self, $call, $self.inner.$method($($argument),*))) })
    };
}

/// Passes every call to the inner store, and guards purges.
macro_rules! guarded {
    ($self:ident, $call:expr, purge_before($dataset:ident, $cutoff:ident)) => {
        Box::pin($self.purge($dataset, $cutoff))
    };
    ($self:ident, $call:expr, $method:ident($($argument:ident),*)) => { $self.inner.$method($($argument),*) };
}

#[deny(clippy::missing_trait_methods)]
impl<S: PriceStore, L: Layer> PriceStore for Layered<S, L> {
    price_store!(layered);
}

#[deny(clippy::missing_trait_methods)]
impl<S: PriceStore> PriceStore for Retry<S> {
    price_store!(retried);
}

#[deny(clippy::missing_trait_methods)]
impl<S: PriceStore> PriceStore for PurgeGuard<S> {
    price_store!(guarded);
}

#[deny(clippy::missing_trait_methods)]
impl<B: MessageBus, L: Layer> MessageBus for Layered<B, L> {
    message_bus!(layered);
}

#[deny(clippy::missing_trait_methods)]
impl<B: MessageBus> MessageBus for Retry<B> {
    message_bus!(retried);
}

#[deny(clippy::missing_trait_methods)]
impl<S: Subscription, L: Layer> Subscription for Layered<S, L> {
    subscription!(layered);
}

#[deny(clippy::missing_trait_methods)]
impl<S: Subscription> Subscription for Retry<S> {
    subscription!(retried);
}
