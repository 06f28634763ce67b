//! The operations of the ports by name: what wrappers, faults, metrics and errors speak of.

use std::borrow::Cow;
use std::fmt;

macro_rules! operations {
    ($($port:ident { $($name:ident $text:literal $nature:ident),* $(,)? })*) => {
        /// One method of `PriceStore`, `MessageBus` or `Subscription`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Operation {
            $($(#[doc = concat!("`", stringify!($port), "::", $text, "`")] $name,)*)*
        }

        impl Operation {
            /// Every operation.
            pub const ALL: &'static [Self] = &[$($(Self::$name),*),*];

            /// The name of the method.
            pub const fn as_str(self) -> &'static str {
                match self { $($(Self::$name => $text),*),* }
            }

            /// The port that it belongs to.
            pub const fn port(self) -> Port {
                match self { $($(Self::$name => Port::$port),*),* }
            }

            /// Its place in [`Operation::ALL`].
            pub(crate) const fn index(self) -> usize {
                self as usize
            }

            /// What it does to the backend.
            pub const fn nature(self) -> Nature {
                match self { $($(Self::$name => Nature::$nature),*),* }
            }
        }
    };
}

/// Which port an operation belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Port {
    /// `PriceStore`
    Store,
    /// `MessageBus`
    Bus,
    /// `Subscription`
    Subscription,
}

impl Port {
    /// The name as it stands in metrics: `store`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Bus => "bus",
            Self::Subscription => "subscription",
        }
    }
}

/// What an operation does to the backend, which decides its time limit and what a cut-off call may leave behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Nature {
    /// Changes nothing.
    Read,
    /// Changes a bounded batch.
    Write,
    /// Changes a schema or an unbounded amount of data; may take minutes.
    Heavy,
    /// Begins or ends something, or moves a cursor.
    Life,
}

operations! {
    Store {
        EnsureSchema "ensure_schema" Heavy,
        StorePing "ping" Read,
        InsertTicks "insert_ticks" Write,
        InsertQuotes "insert_quotes" Write,
        InsertBars "insert_bars" Write,
        InsertSnapshots "insert_snapshots" Write,
        Ticks "ticks" Read,
        Quotes "quotes" Read,
        Bars "bars" Read,
        Snapshots "snapshots" Read,
        LatestTicks "latest_ticks" Read,
        LatestQuotes "latest_quotes" Read,
        LatestBars "latest_bars" Read,
        LatestSnapshots "latest_snapshots" Read,
        DerivedBars "derived_bars" Read,
        Stats "stats" Read,
        Instruments "instruments" Read,
        DeleteRange "delete_range" Heavy,
        PurgeBefore "purge_before" Heavy,
        StoreClose "close" Life,
    }
    Bus {
        Publish "publish" Write,
        Subscribe "subscribe" Life,
        Read "read" Life,
        CreateTopics "create_topics" Write,
        DeleteTopics "delete_topics" Write,
        Topics "topics" Read,
        Groups "groups" Read,
        BusPing "ping" Read,
        BusClose "close" Life,
    }
    Subscription {
        Recv "recv" Read,
        Commit "commit" Write,
        Seek "seek" Life,
        Pause "pause" Life,
        Resume "resume" Life,
        Assignment "assignment" Read,
        SubscriptionClose "close" Life,
    }
}

impl Operation {
    /// Whether it closes a store, a bus or a subscription: what wrappers that refuse or hold back let pass.
    pub const fn is_close(self) -> bool {
        matches!(self, Self::StoreClose | Self::BusClose | Self::SubscriptionClose)
    }

    /// Whether it asks a backend for a sign of life.
    pub const fn is_ping(self) -> bool {
        matches!(self, Self::StorePing | Self::BusPing)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl From<Operation> for Cow<'static, str> {
    fn from(operation: Operation) -> Self {
        Cow::Borrowed(operation.as_str())
    }
}
