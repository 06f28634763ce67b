//! The operations of the ports. Layers, injected faults, metrics and errors identify a call by its operation.

use std::borrow::Cow;
use std::fmt;

macro_rules! operations {
    ($($port:ident { $($name:ident $text:literal $class:ident),* $(,)? })*) => {
        /// One method of `PriceStore`, `MessageBus` or `Subscription`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Operation {
            $($(#[doc = concat!("`", stringify!($port), "::", $text, "`")] $name,)*)*
        }

        impl Operation {
            /// Every operation of the ports.
            pub const ALL: &'static [Self] = &[$($(Self::$name),*),*];

            /// Returns the name of the method.
            pub const fn as_str(self) -> &'static str {
                match self { $($(Self::$name => $text),*),* }
            }

            /// Returns the port of the method.
            pub const fn port(self) -> Port {
                match self { $($(Self::$name => Port::$port),*),* }
            }

            /// Returns the index in [`Operation::ALL`].
            pub(crate) const fn index(self) -> usize {
                self as usize
            }

            /// Returns the effect of the operation on the backend.
            pub const fn class(self) -> OperationClass {
                match self { $($(Self::$name => OperationClass::$class),*),* }
            }
        }
    };
}

/// The port of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Port {
    /// The port `PriceStore`.
    Store,
    /// The port `MessageBus`.
    Bus,
    /// The port `Subscription`.
    Subscription,
}

impl Port {
    /// Returns the port's name in metrics, for example `store`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Bus => "bus",
            Self::Subscription => "subscription",
        }
    }
}

/// The effect of an operation on the backend. It determines the time limit and the possible
/// effects of a cancelled call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum OperationClass {
    /// The operation changes nothing.
    Read,
    /// The operation changes a bounded batch.
    Write,
    /// The operation changes a schema or an unbounded amount of data. It may take minutes.
    Bulk,
    /// The operation opens or closes a port or a subscription, or moves a cursor.
    Lifecycle,
}

operations! {
    Store {
        EnsureSchema "ensure_schema" Bulk,
        PlanSchema "plan_schema" Read,
        StorePing "ping" Read,
        Insert "insert" Write,
        Range "range" Read,
        Latest "latest" Read,
        DerivedBars "derived_bars" Read,
        Stats "stats" Read,
        Series "series" Read,
        DeleteRange "delete_range" Bulk,
        PurgeBefore "purge_before" Bulk,
        Maintain "maintain" Bulk,
        StoreClose "close" Lifecycle,
    }
    Bus {
        Publish "publish" Write,
        Subscribe "subscribe" Lifecycle,
        OpenReader "open_reader" Lifecycle,
        CreateTopics "create_topics" Write,
        DeleteTopics "delete_topics" Write,
        Topics "topics" Read,
        Groups "groups" Read,
        BusPing "ping" Read,
        BusClose "close" Lifecycle,
    }
    Subscription {
        Recv "recv" Read,
        Commit "commit" Write,
        Seek "seek" Lifecycle,
        Pause "pause" Lifecycle,
        Resume "resume" Lifecycle,
        Assignment "assignment" Read,
        SubscriptionClose "close" Lifecycle,
    }
}

impl Operation {
    /// Returns whether the operation closes a store, a bus or a subscription. Layers that reject or delay
    /// calls let a close pass.
    pub const fn is_close(self) -> bool {
        matches!(self, Self::StoreClose | Self::BusClose | Self::SubscriptionClose)
    }

    /// Returns whether the operation pings a backend.
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
