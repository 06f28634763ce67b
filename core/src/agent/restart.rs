//! The restart decision, a pure function of an agent's exits.

use std::time::Duration;

use fastrand::Rng;

use super::status::{ExitReason, GiveUpReason};
use crate::{Backoff, Error, Result, RetryAdvice};

/// The exits after which an agent restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RestartMode {
    /// No restart: every failure is final.
    Never,
    /// A restart after a retryable error and after a crash.
    #[default]
    OnFailure,
    /// A restart after a retryable error, after a crash, and after completion.
    Always,
}

/// The reaction to an agent's failure.
///
/// A *streak* of failures ends when the agent has been Running for `stable_after`. Crashes (a panic, a timeout or a
/// missing heartbeat) are counted within a streak. The agent fails at crash number `max_crashes`. Retryable errors have
/// no limit, because an outage of a server is not a fault of the agent.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct RestartPolicy {
    /// The exits after which the agent restarts. Defaults to `OnFailure`.
    pub mode: RestartMode,
    /// The delays before restarts. Defaults to [`Backoff::default`].
    pub backoff: Backoff,
    /// The number of crashes in one streak at which the agent fails. None sets no limit, and 0 counts
    /// as 1. Defaults to 5.
    pub max_crashes: Option<u32>,
    /// The time in status Running that ends a streak. Defaults to 60 s.
    pub stable_after: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            mode: RestartMode::OnFailure,
            backoff: Backoff::default(),
            max_crashes: Some(5),
            stable_after: Duration::from_mins(1),
        }
    }
}

impl RestartPolicy {
    /// Returns a policy that never restarts.
    pub fn never() -> Self {
        Self { mode: RestartMode::Never, ..Self::default() }
    }

    /// Returns a policy that also restarts after completion.
    pub fn always() -> Self {
        Self { mode: RestartMode::Always, ..Self::default() }
    }

    /// Sets the delays before restarts.
    #[must_use]
    pub fn with_backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Sets the number of crashes in one streak at which the agent fails. None sets no limit.
    #[must_use]
    pub fn with_max_crashes(mut self, crashes: impl Into<Option<u32>>) -> Self {
        self.max_crashes = crashes.into();
        self
    }

    /// Sets the time in status Running that ends a streak.
    #[must_use]
    pub fn with_stable_after(mut self, stable_after: Duration) -> Self {
        self.stable_after = stable_after;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.stable_after.is_zero() {
            return Err(Error::invalid("agent.restart", "stable_after", "0", "must be longer than 0"));
        }
        self.backoff.check()
    }
}

/// The decision after an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Decision {
    /// The agent ends as Stopped.
    Done,
    /// The next incarnation starts after this delay.
    RestartAfter(Duration),
    /// The agent ends as Failed.
    GiveUp(GiveUpReason),
}

/// A policy and the current streak. The same exits and the same random generator give the same decisions.
///
/// ```
/// use std::time::Duration;
/// use qi_core::agent::{Decision, ExitReason, GiveUpReason, RestartPolicy, RestartState};
///
/// let mut state = RestartState::new(RestartPolicy::default().with_max_crashes(2));
/// let mut rng = fastrand::Rng::with_seed(1);
/// let panicked = ExitReason::Panicked("oh".into());
/// assert!(matches!(state.decide(&panicked, Duration::ZERO, &mut rng), Decision::RestartAfter(_)));
/// assert_eq!(
///     state.decide(&panicked, Duration::ZERO, &mut rng),
///     Decision::GiveUp(GiveUpReason::TooManyCrashes(2)),
/// );
/// ```
#[derive(Debug, Clone)]
pub struct RestartState {
    policy: RestartPolicy,
    streak: u32,
    crashes: u32,
}

impl RestartState {
    /// Creates the initial state, without a streak.
    pub fn new(policy: RestartPolicy) -> Self {
        Self { policy, streak: 0, crashes: 0 }
    }

    /// Returns the number of restarts in the current streak.
    pub fn streak(&self) -> u32 {
        self.streak
    }

    /// Decides on a restart after `exit` of an agent that was Running for `ran_for` (zero if it never was).
    pub fn decide(&mut self, exit: &ExitReason, ran_for: Duration, rng: &mut Rng) -> Decision {
        // Only time in Running counts, so a slow start does not end a streak.
        if ran_for >= self.policy.stable_after {
            (self.streak, self.crashes) = (0, 0);
        }
        let at_least = match exit {
            ExitReason::Cancelled | ExitReason::DependencyFailed(_) | ExitReason::DriverAborted => {
                return Decision::Done;
            }
            ExitReason::Completed if self.policy.mode == RestartMode::Always => Duration::ZERO,
            ExitReason::Completed => return Decision::Done,
            _ if self.policy.mode == RestartMode::Never => {
                return Decision::GiveUp(GiveUpReason::PolicyNever);
            }
            ExitReason::Error(error) => match error.retry() {
                RetryAdvice::Never => return Decision::GiveUp(GiveUpReason::NotRetryable),
                RetryAdvice::Backoff => Duration::ZERO,
                RetryAdvice::After(delay) => delay,
            },
            ExitReason::Panicked(_) | ExitReason::TimedOut(_) | ExitReason::Stale => {
                self.crashes = self.crashes.saturating_add(1);
                match self.policy.max_crashes {
                    Some(max) if self.crashes >= max => {
                        return Decision::GiveUp(GiveUpReason::TooManyCrashes(self.crashes));
                    }
                    _ => Duration::ZERO,
                }
            }
        };
        self.streak = self.streak.saturating_add(1);
        Decision::RestartAfter(self.policy.backoff.delay(self.streak, rng.f64()).max(at_least))
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;
    use proptest::prelude::{Just, Strategy, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};

    use super::{
        Backoff, Decision, Duration, Error, ExitReason, GiveUpReason, RestartPolicy, RestartState,
        RetryAdvice,
    };
    use crate::ErrorKind;
    use crate::agent::Phase;

    fn retryable() -> ExitReason {
        ExitReason::Error(Error::new(ErrorKind::Unavailable, "test", "run"))
    }

    fn policies() -> impl Strategy<Value = RestartPolicy> {
        (0u64..2_000, 0u64..20_000, 1.0f64..10.0, 0.0f64..=1.0).prop_map(|(min, more, factor, jitter)| {
            let backoff = Backoff::new(Duration::from_millis(min), Duration::from_millis(min + more));
            RestartPolicy::default()
                .with_backoff(backoff.with_factor(factor).with_jitter(jitter))
                .with_max_crashes(None)
        })
    }

    fn crashes() -> impl Strategy<Value = ExitReason> {
        prop_oneof![
            Just(ExitReason::Panicked("p".into())),
            Just(ExitReason::TimedOut(Phase::Initialize)),
            Just(ExitReason::TimedOut(Phase::Run)),
            Just(ExitReason::Stale),
        ]
    }

    fn delays(policy: RestartPolicy, seed: u64, exits: &[ExitReason]) -> Vec<Decision> {
        let (mut state, mut rng) = (RestartState::new(policy), Rng::with_seed(seed));
        exits.iter().map(|exit| state.decide(exit, Duration::ZERO, &mut rng)).collect()
    }

    proptest! {
        #[test]
        fn every_delay_lies_within_its_bounds(policy in policies(), seed: u64, n in 1usize..40) {
            let Backoff { min, max, jitter, .. } = policy.backoff;
            for decision in delays(policy, seed, &vec![retryable(); n]) {
                let Decision::RestartAfter(delay) = decision else { panic!("{decision:?}") };
                prop_assert!(delay <= max);
                let least = min.as_secs_f64() * 1e3 * (1.0 - jitter);
                prop_assert!(delay.as_secs_f64() * 1e3 > least - 1.0, "{delay:?} below {least} ms");
                prop_assert_eq!(delay.subsec_nanos() % 1_000_000, 0, "whole milliseconds");
            }
        }

        #[test]
        fn delays_without_jitter_never_decrease(policy in policies(), n in 1u32..200) {
            let backoff = policy.backoff.with_jitter(0.0);
            prop_assert!(backoff.delay(n, 1.0) <= backoff.delay(n + 1, 0.0));
            prop_assert_eq!(backoff.delay(u32::MAX, 0.5) <= backoff.max, true);
        }

        #[test]
        fn the_same_seed_gives_the_same_delays(policy in policies(), seed: u64, exits in prop::collection::vec(crashes(), 1..30)) {
            prop_assert_eq!(delays(policy, seed, &exits), delays(policy, seed, &exits));
        }

        #[test]
        fn gives_up_after_max_crashes(max in 1u32..50, exits in prop::collection::vec(crashes(), 50)) {
            let policy = RestartPolicy::default().with_max_crashes(max);
            let decisions = delays(policy, 7, &exits);
            let end = decisions.iter().position(|d| matches!(d, Decision::GiveUp(_))).unwrap();
            prop_assert_eq!(end + 1, max as usize);
            prop_assert_eq!(decisions[end], Decision::GiveUp(GiveUpReason::TooManyCrashes(max)));
        }

        #[test]
        fn retryable_errors_restart_without_limit(seed: u64, n in 1usize..300) {
            let decisions = delays(RestartPolicy::default().with_max_crashes(1), seed, &vec![retryable(); n]);
            prop_assert!(decisions.iter().all(|d| matches!(d, Decision::RestartAfter(_))));
        }

        #[test]
        fn only_a_stable_run_resets_the_streak(before in 1u32..5, short in 0u64..60_000) {
            let panicked = ExitReason::Panicked("p".into());
            let policy = RestartPolicy::default().with_backoff(Backoff::default().with_jitter(0.0)).with_max_crashes(10);
            let mut rng = Rng::with_seed(1);
            let mut state = RestartState::new(policy);
            for _ in 0..before {
                state.decide(&panicked, Duration::from_millis(short), &mut rng);
            }
            prop_assert_eq!(state.streak(), before);
            let decision = state.decide(&panicked, policy.stable_after, &mut rng);
            prop_assert_eq!(decision, Decision::RestartAfter(policy.backoff.min));
            prop_assert_eq!((state.streak(), state.crashes), (1, 1));
        }
    }

    #[test]
    fn restarts_without_a_crash_limit_never_end() {
        let mut state = RestartState::new(RestartPolicy::default().with_max_crashes(None));
        (state.streak, state.crashes) = (u32::MAX - 1, u32::MAX - 1);
        let mut rng = Rng::with_seed(1);
        for _ in 0..4 {
            let decision = state.decide(&ExitReason::Stale, Duration::ZERO, &mut rng);
            assert!(matches!(decision, Decision::RestartAfter(delay) if delay <= Duration::from_secs(5)));
        }
        assert_eq!((state.streak, state.crashes), (u32::MAX, u32::MAX));
    }

    #[test]
    fn the_retry_advice_decides_on_a_restart() {
        let never = ExitReason::Error(Error::new(ErrorKind::Config, "test", "run"));
        assert_eq!(
            delays(RestartPolicy::default(), 1, std::slice::from_ref(&never)),
            [Decision::GiveUp(GiveUpReason::NotRetryable)]
        );
        assert_eq!(
            delays(RestartPolicy::always(), 1, &[never]),
            [Decision::GiveUp(GiveUpReason::NotRetryable)]
        );
        let pause = Duration::from_secs(90);
        let after = ExitReason::Error(
            Error::new(ErrorKind::Overloaded, "t", "run").with_retry(RetryAdvice::After(pause)),
        );
        assert_eq!(delays(RestartPolicy::default(), 1, &[after]), [Decision::RestartAfter(pause)]);
        let spent = ExitReason::Error(Error::new(ErrorKind::Unavailable, "t", "run").with_exhausted(5));
        assert!(matches!(delays(RestartPolicy::default(), 1, &[spent])[0], Decision::RestartAfter(_)));
    }

    #[test]
    fn restart_decision_depends_on_mode_and_exit() {
        let restarts = |policy: RestartPolicy, exit: &ExitReason| {
            matches!(delays(policy, 1, std::slice::from_ref(exit))[0], Decision::RestartAfter(_))
        };
        let (never, failure, always) =
            (RestartPolicy::never(), RestartPolicy::default(), RestartPolicy::always());
        for (exit, expected) in [
            (ExitReason::Completed, [false, false, true]),
            (ExitReason::Cancelled, [false, false, false]),
            (ExitReason::DriverAborted, [false, false, false]),
            (ExitReason::Stale, [false, true, true]),
            (retryable(), [false, true, true]),
        ] {
            assert_eq!([never, failure, always].map(|p| restarts(p, &exit)), expected, "{exit}");
        }
        assert_eq!(delays(never, 1, &[retryable()]), [Decision::GiveUp(GiveUpReason::PolicyNever)]);
    }

    #[test]
    fn invalid_policies_are_rejected() {
        let with = |backoff| RestartPolicy::default().with_backoff(backoff).check();
        assert!(RestartPolicy::default().check().is_ok());
        assert!(RestartPolicy::default().with_stable_after(Duration::ZERO).check().is_err());
        for jitter in [-0.1, 1.1, f64::NAN] {
            assert!(with(Backoff::default().with_jitter(jitter)).is_err(), "{jitter}");
        }
        for factor in [0.9, f64::NAN, f64::INFINITY] {
            assert!(with(Backoff::default().with_factor(factor)).is_err(), "{factor}");
        }
        assert!(with(Backoff::new(Duration::from_secs(2), Duration::from_secs(1))).is_err());
    }
}
