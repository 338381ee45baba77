//! Measurements: every rate is there, and a profile survives its file. No time is asserted.

use std::thread;
use std::time::Duration;

use ombra_ir::bind::bind;
use ombra_ir::profile::{Profile, Unit, work_of};
use ombra_ir::{
    module::{Id, Setting},
    schedule::schedule,
};
use ombra_runtime::app::measure::{Size, answer, measure, probes};
use ombra_runtime::config::PartyConfig;
use ombra_runtime::keygen::write_local_set;
use ombra_runtime::transport::{Acceptor, Endpoint, Party};

const SMALL: Size = Size { side: 8, matrix: 8, rows: 2, table: 16 };

#[test]
fn a_profile_has_every_rate_and_survives_its_file() {
    for setting in [Setting::ThreeParty, Setting::Dealer] {
        a_profile_of(setting);
    }
    assert_eq!(measure(Setting::Plain, None, None, 1, SMALL).err().map(|error| error.code), Some("E0421"));
}

fn a_profile_of(setting: Setting) {
    let profile = measure(setting, None, None, 1, SMALL).expect("probes run");
    assert_eq!(profile.check(), Ok(()));
    assert_eq!(profile.check_setting(setting), Ok(()));
    let others = Setting::ALL.into_iter().filter(|other| *other != setting);
    assert!(others.into_iter().all(|other| profile.check_setting(other).is_err()));
    assert!(profile.links.is_empty() && profile.network().is_none());
    let text = serde_json::to_string(&profile).expect("a profile is JSON");
    let read: Profile = serde_json::from_str(&text).expect("its own JSON");
    assert_eq!(read.per_second.len(), Unit::ALL.len());
    assert_eq!(read.check(), Ok(()));
    assert_eq!(read.setting, setting.name());
}

/// Each pair of programs differs in the unit that it measures, and needs no rate that comes later.
#[test]
fn probes_tell_units_apart() {
    for setting in [Setting::ThreeParty, Setting::Dealer] {
        probes_of(setting);
    }
}

fn probes_of(setting: Setting) {
    let mut known = vec![Unit::PrgBytes];
    for probe in probes(setting, Size::MACHINE).expect("the sizes are good") {
        let work = |i: usize| {
            let module = &probe.modules[i];
            let bound = bind(module, &[], &[]).expect("no symbols");
            schedule(module, &bound).expect("no masks");
            let count = |unit: Unit| -> f64 {
                let ids = (0..module.ops.len() as u32).map(Id);
                ids.map(|id| work_of(module, &bound, id).expect("no masks").get(&unit).copied().unwrap_or(0.0)).sum()
            };
            Unit::ALL.map(count)
        };
        let (short, long) = (work(0), work(1));
        known.push(probe.unit);
        if probe.unit == Unit::Rounds {
            // Values of eight elements: what is done with them takes no time beside a round.
            assert!(short.iter().chain(&long).all(|&count| count < 4096.0));
            continue;
        }
        for (unit, (a, b)) in Unit::ALL.into_iter().zip(short.into_iter().zip(long)) {
            assert!(a == b || known.contains(&unit), "{:?} also changes {unit:?}", probe.unit);
            if unit == probe.unit {
                assert!(b > a, "{unit:?} is the same in both");
            }
        }
    }
    assert_eq!(known.len(), Unit::ALL.len());
}

#[test]
fn links_are_measured_with_peers_that_answer() {
    let folder = std::env::temp_dir().join(format!("ombra-links-{}", std::process::id()));
    let paths = write_local_set(&folder, Party::Helper).expect("keys can be made");
    let [_, server, helper] = [0, 1, 2].map(|i| {
        let config = PartyConfig::read(&paths[i]).expect("it was just written");
        Endpoint::new(&config, "", None).expect("its key is there")
    });
    let acceptors = [&server, &helper].map(|endpoint| Acceptor::bind(endpoint, drop).expect("the port is free"));
    let peers = thread::spawn(move || {
        let [server, helper] = acceptors;
        let mut first = server.next(Some(Duration::from_secs(10))).expect("a session");
        first.join().expect("the helper listens");
        let second = helper.next(Some(Duration::from_secs(10))).expect("a session");
        // The client measures one link after the other.
        answer(&first).and_then(|()| answer(&second))
    });
    let profile = measure(Setting::ThreeParty, Some(&paths[0]), None, 1, SMALL).expect("the peers answer");
    assert_eq!(peers.join().expect("no panic"), Ok(()));
    std::fs::remove_dir_all(&folder).expect("it was made here");
    let names: Vec<&str> = profile.links.iter().map(|link| link.peer.as_str()).collect();
    assert_eq!(names, ["server", "helper"]);
    assert_eq!(profile.check(), Ok(()));
    let network = profile.network().expect("links were measured");
    assert!(network.bandwidth_bits_per_s > 0);
}
