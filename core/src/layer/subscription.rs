//! Every method of `Subscription`, forwarded once.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use super::Intercept;
use crate::bus::{Assignment, Batch, Committed, Positions, SeekTo, Subscription, TopicPartition};
use crate::{Operation, Result};

/// A subscription with a policy around every call.
#[derive(Debug)]
pub struct LayeredSubscription<X> {
    inner: Box<dyn Subscription>,
    layer: Arc<X>,
}

impl<X: Intercept> LayeredSubscription<X> {
    /// Wraps a subscription.
    pub fn new(inner: Box<dyn Subscription>, layer: Arc<X>) -> Self {
        Self { inner, layer }
    }
}

macro_rules! through {
    ($($method:ident($argument:ident: $type:ty) -> $output:ty = $operation:ident;)*) => {$(
        fn $method<'a, 'b, 'f>(&'a mut self, $argument: &'b $type) -> BoxFuture<'f, Result<$output>>
        where
            'a: 'f,
            'b: 'f,
            Self: 'f,
        {
            self.layer.call_mut(Operation::$operation, &mut *self.inner, $argument, |s, a| s.$method(a))
        }
    )*};
}

#[deny(clippy::missing_trait_methods)]
impl<X: Intercept> Subscription for LayeredSubscription<X> {
    fn recv<'a, 'f>(&'a mut self, max: usize, wait: Duration) -> BoxFuture<'f, Result<Batch>>
    where
        'a: 'f,
        Self: 'f,
    {
        self.layer.recv(&mut *self.inner, max, wait)
    }

    through! {
        commit(upto: Positions) -> Committed = Commit;
        seek(to: [(TopicPartition, SeekTo)]) -> () = Seek;
        pause(partitions: [TopicPartition]) -> () = Pause;
        resume(partitions: [TopicPartition]) -> () = Resume;
    }

    fn assignment<'a, 'f>(&'a mut self) -> BoxFuture<'f, Result<Assignment>>
    where
        'a: 'f,
        Self: 'f,
    {
        self.layer.call_mut(Operation::Assignment, &mut *self.inner, &(), |s, ()| s.assignment())
    }

    fn close<'a, 'f>(&'a mut self) -> BoxFuture<'f, Result<()>>
    where
        'a: 'f,
        Self: 'f,
    {
        self.layer.call_mut(Operation::SubscriptionClose, &mut *self.inner, &(), |s, ()| s.close())
    }
}
