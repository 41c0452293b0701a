//! Which settings are safe, and what follows from them.

use super::*;

fn profile(renew: u64, lease: u64, watchdog: u64) -> Profile {
    Profile::of_millis(renew, lease, watchdog)
}

#[test]
fn every_named_profile_is_safe_and_found_by_its_name() {
    for (name, profile) in Profile::NAMED {
        assert_eq!(profile.check(), Ok(()), "{name}");
        assert_eq!(Profile::named(name), Some(profile));
    }
    assert_eq!(Profile::named("mid"), None);
}

#[test]
fn a_promise_outlasts_lease_and_watchdog_on_the_slowest_clock() {
    for (name, profile) in Profile::NAMED {
        let both = (profile.lease + profile.watchdog).as_nanos();
        let promise = profile.promise().as_nanos();
        // On the host's clock, slow by rho, `both` takes both / (1 - rho); on the voter's, fast by rho, the promise
        // takes promise / (1 + rho).
        assert!(promise * 999 >= both * 1001, "{name}");
        assert!(promise * 999 < both * 1001 + 999, "{name}: no longer than needed");
    }
    assert_eq!(Profile::QUICK.promise(), Duration::from_nanos(7_014_014_015));
}

#[test]
fn the_last_quarter_is_frozen() {
    let deadline = BootInstant(0) + Duration::from_secs(100);
    assert_eq!(Profile::QUICK.freeze_at(deadline), BootInstant(0) + Duration::from_secs(99));
    assert_eq!(Profile::STANDARD.freeze_at(deadline), BootInstant(0) + Duration::from_millis(97_500));
}

#[test]
fn short_profiles_want_two_paths() {
    let want: Vec<_> = Profile::NAMED.iter().filter(|(_, p)| p.wants_two_paths()).map(|(n, _)| *n).collect();
    assert_eq!(want, ["fast", "quick"]);
}

#[test]
fn unsafe_settings_are_refused_by_the_first_that_is_wrong() {
    let ms = Duration::from_millis;
    for (unsafe_one, why) in [
        (profile(0, 4000, 3000), Error::NoRenewal),
        (profile(3000, 4000, 3000), Error::RenewalsTooRare { renew: ms(3000), lease: ms(4000) }),
        (profile(1501, 4000, 3000), Error::RenewalsTooRare { renew: ms(1501), lease: ms(4000) }),
        (profile(100, 1900, 3000), Error::LeaseTooShort { lease: ms(1900) }),
        (profile(500, 4000, 900), Error::WatchdogTooShort { watchdog: ms(900) }),
        (
            profile(5000, 21_000, 10_000),
            Error::PromiseTooLong { promise: profile(5000, 21_000, 10_000).promise() },
        ),
    ] {
        assert_eq!(unsafe_one.check(), Err(why), "{unsafe_one:?}");
    }
}

#[test]
fn a_wait_shorter_than_the_promise_is_refused() {
    let quick = Profile::QUICK;
    assert!(quick.check_wait(quick.promise()).is_ok());
    let error = quick.check_wait(Duration::from_secs(7)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a wait of 7s before a host's VMs are started elsewhere is unsafe: it has to be 7.014014015s or more"
    );
}
