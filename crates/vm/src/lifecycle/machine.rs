//! Pure: what to do with a machine when no operation is under way.

use model::Generation;
use model::OpId;
use model::Power;
use model::VmRecord;

/// What is there of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actual {
    /// Nothing.
    Absent,
    /// A process of this run.
    Present {
        /// Under which right to run.
        generation: Generation,
        /// What its processors do.
        cpus: Cpus,
    },
}

/// What a machine's processors do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cpus {
    /// They run.
    Run,
    /// They stand, and can go on.
    Stand,
    /// They stand because a disk could not be written.
    StorageError,
    /// The guest has shut down.
    ShutDown,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settle {
    /// All is as it should be.
    Nothing,
    /// Start it under the present generation.
    Launch,
    /// End it: it has no right to run.
    Reap,
    /// Let its processors go on.
    Continue,
    /// Stop its processors.
    Pause,
    /// Tell the state that the guest has shut down, and end the process.
    ReportShutdown,
    /// Tell the state that the machine is lost: a paused one cannot be made again.
    ReportLost,
    /// Look again in a while whether the storage is back.
    AwaitStorage,
}

/// Whether a machine was made for the VM's present run: also for the same arrival, since a takeover
/// gives the number that a migration would have given to a run that starts from the disks.
pub fn is_of_present_run(record: &VmRecord, generation: Generation, arrival: Option<OpId>) -> bool {
    (record.generation, record.arrived_by()) == (generation, arrival)
}

/// What to do with a machine, given the settled power state, the present right to run, and what is
/// there.
///
/// The first rule is that of DESIGN.md section 4: a process with an older generation, or of a VM
/// that should not run, is ended whatever it does.
pub fn settle(power: Power, generation: Generation, actual: Actual) -> Settle {
    let Actual::Present { generation: theirs, cpus } = actual else {
        return match power {
            Power::Off | Power::Saved => Settle::Nothing,
            Power::Running => Settle::Launch,
            Power::Paused => Settle::ReportLost,
        };
    };
    if theirs != generation {
        return Settle::Reap;
    }
    match (power, cpus) {
        (Power::Off | Power::Saved, _) => Settle::Reap,
        (Power::Running | Power::Paused, Cpus::ShutDown) => Settle::ReportShutdown,
        (Power::Running, Cpus::Run) | (Power::Paused, Cpus::Stand | Cpus::StorageError) => {
            Settle::Nothing
        }
        (Power::Running, Cpus::Stand) => Settle::Continue,
        (Power::Running, Cpus::StorageError) => Settle::AwaitStorage,
        (Power::Paused, Cpus::Run) => Settle::Pause,
    }
}

#[cfg(test)]
mod tests {
    use model::Generation;
    use model::Power;

    use super::Actual;
    use super::Cpus;
    use super::Settle;
    use super::settle;

    const NOW: Generation = Generation::new(7);

    fn all_cpus() -> [Cpus; 4] {
        [Cpus::Run, Cpus::Stand, Cpus::StorageError, Cpus::ShutDown]
    }

    #[test]
    fn an_older_run_is_always_ended() {
        for power in [Power::Off, Power::Running, Power::Paused, Power::Saved] {
            for cpus in all_cpus() {
                let actual = Actual::Present { generation: Generation::new(6), cpus };
                assert_eq!(settle(power, NOW, actual), Settle::Reap);
            }
        }
    }

    #[test]
    fn what_should_not_run_is_ended() {
        for power in [Power::Off, Power::Saved] {
            for cpus in all_cpus() {
                let actual = Actual::Present { generation: NOW, cpus };
                assert_eq!(settle(power, NOW, actual), Settle::Reap);
            }
            assert_eq!(settle(power, NOW, Actual::Absent), Settle::Nothing);
        }
    }

    #[test]
    fn what_should_run_is_started_and_goes_on() {
        let with = |cpus| settle(Power::Running, NOW, Actual::Present { generation: NOW, cpus });
        assert_eq!(settle(Power::Running, NOW, Actual::Absent), Settle::Launch);
        assert_eq!(with(Cpus::Run), Settle::Nothing);
        assert_eq!(with(Cpus::Stand), Settle::Continue);
        assert_eq!(with(Cpus::StorageError), Settle::AwaitStorage);
        assert_eq!(with(Cpus::ShutDown), Settle::ReportShutdown);
    }

    #[test]
    fn a_paused_machine_is_never_started_afresh() {
        assert_eq!(settle(Power::Paused, NOW, Actual::Absent), Settle::ReportLost);
    }
}
