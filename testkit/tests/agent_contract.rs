//! The agents of the testkit and of `qi-core` pass the contract suite of agents.

use std::process::ExitCode;

use libtest_mimic::{Arguments, run};
use qi_core::agent::agent_fn;
use qi_testkit::agent::{ClockMode, Script, ScriptedAgent, agent_contract, agent_contract_on};

fn main() -> ExitCode {
    let function = || {
        agent_fn(|cx| async move {
            while cx.sleep(std::time::Duration::from_millis(50)).await.is_some() {
                cx.heartbeat();
            }
            Ok(())
        })
    };
    let mut trials = agent_contract("agent_fn", function);
    let waiting = || {
        agent_fn(|cx| async move {
            cx.cancelled().await;
            Ok(())
        })
    };
    trials.extend(agent_contract_on(ClockMode::Real, "agent_fn_on_real_time", waiting));
    let scripts = ScriptedAgent::script([Script::default()]);
    trials.extend(agent_contract("scripted", move || scripts.make()));
    run(&Arguments::from_args(), trials).exit_code()
}
