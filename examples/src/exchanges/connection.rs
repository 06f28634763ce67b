//! The stream of an exchange: connections one after the other.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _, TryFutureExt as _};
use qi_core::agent::AgentContext;
use qi_core::{Error, Result};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{Connector, connect_async_tls_with_config};

use super::feed::{Channel, DegradedCause, LiveFeed};
use super::protocol::{Frame, rejected};
use super::rest::{limit_pause, tls};

impl LiveFeed {
    /// Reads the stream and reconnects until the agent must stop.
    ///
    /// # Errors
    /// A permanent rejection of the subscription, with the symbol.
    pub(super) async fn read_stream(&self, cx: &AgentContext, channel: &Channel<'_>) -> Result<()> {
        let tls = Arc::new(tls()?);
        let mut failures = 0;
        loop {
            // The exchange counts connections, too.
            if cx.until_cancelled(self.rest.wait_for_slot()).await.is_none() {
                return Ok(());
            }
            let began = Instant::now();
            let connection = Box::pin(self.connection(cx, channel, Connector::Rustls(tls.clone())));
            let Some(outcome) = cx.until_cancelled(connection).await else { return Ok(()) };
            let Err(error) = outcome;
            if !error.retry().is_retryable() {
                return Err(error);
            }
            if began.elapsed() >= self.config.stable_after {
                failures = 0;
            }
            failures += 1;
            let delay = self.config.backoff.delay(failures, fastrand::f64());
            tracing::warn!(instrument = %self.instrument, ?delay, error = %error.report(), "the stream ended");
            channel.set_degraded(
                cx,
                DegradedCause::Connection,
                Some(format!("reconnects: {}", error.code())),
            );
            if cx.sleep(delay).await.is_none() {
                return Ok(());
            }
        }
    }

    /// Opens a connection and reads it until it ends.
    async fn connection(
        &self,
        cx: &AgentContext,
        channel: &Channel<'_>,
        connector: Connector,
    ) -> Result<Infallible> {
        let config = &self.config;
        let limits = WebSocketConfig::default()
            .max_message_size(Some(config.max_message))
            .max_frame_size(Some(config.max_message));
        let connect = connect_async_tls_with_config(&*self.stream_url, Some(limits), true, Some(connector));
        let connect = Box::pin(connect).inspect_err(|error| {
            if let WsError::Http(response) = error
                && let Some(pause) = limit_pause(response.status(), response.headers())
            {
                self.rest.pause(pause);
            }
        });
        let (mut socket, _) = self.within(config.connect_timeout, "connecting", connect).await?;
        self.live.connected();
        let subscribe = socket.send(Message::text(self.protocol.subscribe(channel.symbol)));
        self.within(config.connect_timeout, "sending", subscribe).await?;
        let (opened, mut heard) = (Instant::now(), Instant::now());
        // Agents that connected together reconnect at different times.
        let max_age = self.protocol.max_connection_age().map(|age| age.mul_f64(1.0 - 0.1 * fastrand::f64()));
        let mut is_subscribed = false;
        let mut pings = interval(config.heartbeat_timeout / 3);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let message = tokio::select! {
                message = socket.next() => message,
                _ = pings.tick() => {
                    if heard.elapsed() >= config.heartbeat_timeout {
                        return Err(self.ended(format_args!("no message for {:?}", config.heartbeat_timeout)));
                    }
                    if !is_subscribed && opened.elapsed() >= config.subscribe_timeout {
                        return Err(self.ended("the subscription was not acknowledged in time"));
                    }
                    if is_subscribed && channel.published().is_stream_behind {
                        return Err(self.ended("the history has trades that the stream did not deliver"));
                    }
                    if max_age.is_some_and(|age| opened.elapsed() >= age) {
                        return Err(self.ended("the connection is renewed before the exchange closes it"));
                    }
                    let ping = socket.send(Message::Ping(Bytes::new()));
                    self.within(config.heartbeat_timeout, "sending", ping).await?;
                    continue;
                }
            };
            let Some(message) = message else { return Err(self.ended("the server closed the connection")) };
            let message = message.map_err(|error| self.ended("the connection failed").with_source(error))?;
            heard = Instant::now();
            cx.heartbeat();
            let text = match message {
                Message::Text(text) => text,
                Message::Close(_) => return Err(self.ended("the server closed the connection")),
                Message::Binary(_) => {
                    self.bad_frame("a binary message");
                    continue;
                }
                // The library answers pings.
                _ => continue,
            };
            match self.protocol.frame(channel.symbol, &text) {
                Ok(Frame::Trades(trades)) => {
                    let plausible = channel.published().hold_implausible(trades);
                    self.publish(channel, plausible).await?;
                    // A slow bus may have delayed the call.
                    heard = Instant::now();
                }
                Ok(Frame::Subscribed) if is_subscribed => {}
                Ok(Frame::Subscribed) => {
                    is_subscribed = true;
                    channel.subscribed();
                    tracing::info!(instrument = %self.instrument, "subscribed");
                    channel.set_degraded(cx, DegradedCause::Connection, None);
                }
                Ok(Frame::Rejected { reason, is_permanent: true }) => {
                    return Err(rejected(self.protocol.exchange(), channel.symbol, reason));
                }
                Ok(Frame::Rejected { reason, .. }) => {
                    return Err(self.ended(format_args!("the subscription was rejected: {reason:.200}")));
                }
                Ok(Frame::Status(Some(status))) => {
                    tracing::warn!(instrument = %self.instrument, status, "the exchange is not online");
                    let reason = format!("{} reports {status:.40}", self.protocol.exchange());
                    channel.set_degraded(cx, DegradedCause::Exchange, Some(reason));
                }
                Ok(Frame::Status(None)) => channel.set_degraded(cx, DegradedCause::Exchange, None),
                Ok(Frame::Closing) => return Err(self.ended("the server announced its shutdown")),
                Ok(Frame::Other) => {}
                Err(error) => self.bad_frame(error.report()),
            }
        }
    }

    /// Counts a message that is not understood. Its trades, if it has any, are a gap.
    fn bad_frame(&self, why: impl std::fmt::Display) {
        self.live.bad_frame();
        tracing::debug!(instrument = %self.instrument, %why, "message skipped");
    }

    async fn within<T, E: std::error::Error + Send + Sync + 'static>(
        &self,
        limit: Duration,
        what: &'static str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T> {
        match timeout(limit, work).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.ended(format_args!("{what} failed")).with_source(error)),
            Err(_) => Err(self.ended(format_args!("{what} took longer than {limit:?}"))),
        }
    }

    /// Returns the error of a connection that ended. The agent reconnects.
    fn ended(&self, why: impl std::fmt::Display) -> Error {
        Error::new(qi_core::ErrorKind::Unavailable, "live.stream", "read")
            .with_backend(self.protocol.exchange())
            .with_message(why)
            .with_retry(qi_core::RetryAdvice::Backoff)
    }
}
