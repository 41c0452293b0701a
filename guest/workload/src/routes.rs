//! What each path answers. Everything is a GET, so that a person with a browser can play with it.

use crate::churn::MIB_MIN;
use crate::database::{self, LOG_MIB};
use crate::dirtier::Setting;
use crate::filler::{Kind, TooMuch, check_room};
use crate::http::{Response, Stream};
use crate::spare::Spare;
use crate::{Workload, system};

const COUNTER_HZ: u32 = 10;
const COUNTER_HZ_MAX: u32 = 1000;
const DOWNLOAD_MIB_MAX: u64 = 4096;

pub fn answer(workload: &Workload, path: &str, query: &str) -> Response {
    let answered = match path {
        "/" => Ok(Response::text(greeting(workload))),
        "/healthz" => Ok(Response::text("ok\n")),
        "/state" => Ok(Response::json(state(workload))),
        "/counter" => counter(workload),
        "/counter/start" => counter_start(workload, query),
        "/counter/stop" => counter_stop(workload),
        "/counter/writes" => counter_writes(workload),
        "/download" => download(query),
        "/dirty" => dirty(workload, query),
        "/database" => database(workload, query),
        "/churn" => churn(workload, query),
        "/cpu" => cpu(workload, query),
        "/fill" => fill(workload, query),
        _ => Err(Response::refusal(404, "no such page; see /state\n")),
    };
    answered.unwrap_or_else(|refusal| refusal)
}

type Answer = Result<Response, Response>;

fn greeting(workload: &Workload) -> String {
    let requests = workload.count_request();
    let (hostname, uptime_s) = (workload.hostname(), workload.uptime_s());
    format!("hostname={hostname} requests={requests} uptime_s={uptime_s:.3} boot={}\n", workload.boot)
}

fn counter(workload: &Workload) -> Answer {
    match workload.counter.on_disk() {
        Ok(value) => Ok(Response::text(format!("{value}\n"))),
        Err(error) => Err(Response::refusal(507, format!("{error}\n"))),
    }
}

fn counter_start(workload: &Workload, query: &str) -> Answer {
    let hz = number(query, "hz", Some(u64::from(COUNTER_HZ)))?;
    if !(1..=u64::from(COUNTER_HZ_MAX)).contains(&hz) {
        return Err(Response::refusal(400, format!("hz must be 1 to {COUNTER_HZ_MAX}\n")));
    }
    workload.counter.set_hz(hz as u32);
    Ok(Response::text(format!("counting at {hz} Hz\n")))
}

fn counter_stop(workload: &Workload) -> Answer {
    workload.counter.set_hz(0);
    Ok(Response::text("stopped\n"))
}

/// How long the writes took since this was asked last.
fn counter_writes(workload: &Workload) -> Answer {
    Ok(Response::json(format!("{}\n", workload.counter.take_times())))
}

fn download(query: &str) -> Answer {
    let mib = number(query, "mib", None)?;
    if !(1..=DOWNLOAD_MIB_MAX).contains(&mib) {
        return Err(Response::refusal(400, format!("mib must be 1 to {DOWNLOAD_MIB_MAX}\n")));
    }
    let kib_per_s = number(query, "kib_per_s", Some(u64::MAX >> 10))?;
    Ok(Response::stream(Stream { bytes: mib << 20, bytes_per_s: kib_per_s.max(1) << 10 }))
}

fn dirty(workload: &Workload, query: &str) -> Answer {
    let pages_per_s = number(query, "pages_per_s", None)?;
    let mib = number(query, "mib", Some(workload.dirtier.setting().mib.max(1)))?;
    if mib > workload.dirtier.setting().mib {
        check_room(mib).map_err(too_much)?;
    }
    let random_percent = number(query, "random_percent", Some(0))?;
    if random_percent > 100 {
        return Err(Response::refusal(400, "random_percent must be 0 to 100\n"));
    }
    workload.dirtier.set(Setting { pages_per_s, mib, random_percent });
    Ok(Response::text(format!("dirtying {pages_per_s} pages/s of {mib} MiB\n")))
}

fn database(workload: &Workload, query: &str) -> Answer {
    let pages_per_s = number(query, "pages_per_s", None)?;
    let mib = number(query, "mib", Some(workload.database.setting().mib.max(1)))?;
    if mib > workload.database.setting().mib {
        check_room(mib).map_err(too_much)?;
    }
    check_disk(workload, LOG_MIB)?;
    workload.database.set(database::Setting { pages_per_s, mib });
    Ok(Response::text(format!("replacing {pages_per_s} pages/s of {mib} MiB\n")))
}

fn churn(workload: &Workload, query: &str) -> Answer {
    let mib_per_s = number(query, "mib_per_s", None)?;
    check_disk(workload, LOG_MIB + MIB_MIN)?;
    workload.churn.set(mib_per_s);
    Ok(Response::text(format!("reading and writing {mib_per_s} MiB/s of files\n")))
}

/// Refuses what would fail later.
fn check_disk(workload: &Workload, mib: u64) -> Result<(), Response> {
    let found = Spare::open(workload.partition.as_deref(), mib);
    found.map(drop).map_err(|why| Response::refusal(507, format!("{why}\n")))
}

fn cpu(workload: &Workload, query: &str) -> Answer {
    let percent = number(query, "percent", None)?;
    let max = u64::from(system::cpu_count()) * 100;
    if percent > max {
        return Err(Response::refusal(400, format!("percent must be 0 to {max}\n")));
    }
    workload.burner.set_percent(percent as u32);
    Ok(Response::text(format!("burning {percent} percent of a CPU\n")))
}

fn fill(workload: &Workload, query: &str) -> Answer {
    let mib = number(query, "mib", None)?;
    let kind = value(query, "kind").unwrap_or("text");
    let kind = Kind::parse(kind).ok_or_else(|| Response::refusal(400, "kind must be text or random\n"))?;
    workload.filler.fill(mib, kind).map_err(too_much)?;
    Ok(Response::text(format!("holding {mib} MiB of {}\n", kind.name())))
}

fn too_much(error: TooMuch) -> Response {
    Response::refusal(507, format!("the guest has {} MiB left\n", error.available_mib))
}

fn state(workload: &Workload) -> String {
    let (value, hz, error) = workload.counter.state();
    let Setting { pages_per_s, mib, random_percent } = workload.dirtier.setting();
    let [text_mib, random_mib] = [Kind::Text, Kind::Random].map(|kind| workload.filler.held(kind));
    let requests = workload.requests.load(std::sync::atomic::Ordering::Relaxed);
    let (database, churn) = (workload.database.setting(), workload.churn.seen());
    let logged = workload.database.seen();
    format!(
        "{{\"hostname\":{},\"boot\":{},\"uptime_s\":{:.3},\"requests\":{requests},\
         \"counter\":{{\"value\":{value},\"hz\":{hz},\"error\":{}}},\
         \"dirty\":{{\"pages_per_s\":{pages_per_s},\"mib\":{mib},\"random_percent\":{random_percent}}},\
         \"database\":{{\"pages_per_s\":{},\"mib\":{},\"replaced\":{},\"error\":{}}},\
         \"churn\":{{\"mib_per_s\":{},\"files\":{},\"written\":{},\"read\":{},\"wrong\":{},\"error\":{}}},\
         \"cpu\":{{\"percent\":{},\"count\":{}}},\
         \"fill\":{{\"text_mib\":{text_mib},\"random_mib\":{random_mib}}},\"available_mib\":{}}}\n",
        quote(&workload.hostname()),
        quote(&workload.boot),
        workload.uptime_s(),
        or_null(error),
        database.pages_per_s,
        database.mib,
        logged.replaced,
        or_null(logged.error),
        workload.churn.mib_per_s(),
        churn.files,
        churn.written,
        churn.read,
        churn.wrong,
        or_null(churn.error),
        workload.burner.percent(),
        system::cpu_count(),
        system::available_mib(),
    )
}

fn or_null(text: Option<String>) -> String {
    text.map_or_else(|| "null".to_owned(), |text| quote(&text))
}

/// A JSON string.
fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if control.is_control() => quoted.push(' '),
            plain => quoted.push(plain),
        }
    }
    quoted.push('"');
    quoted
}

fn value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
}

fn number(query: &str, name: &str, default: Option<u64>) -> Result<u64, Response> {
    let refusal = || Response::refusal(400, format!("say {name}=NUMBER\n"));
    match (value(query, name), default) {
        (Some(text), _) => text.parse().map_err(|_| refusal()),
        (None, Some(default)) => Ok(default),
        (None, None) => Err(refusal()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(workload: &Workload, target: &str) -> (u16, String) {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let response = answer(workload, path, query);
        (response.status, response.body)
    }

    #[test]
    fn the_greeting_counts_and_the_others_do_not() {
        let workload = Workload::new(None);
        assert!(ask(&workload, "/").1.contains(" requests=1 "));
        ask(&workload, "/healthz");
        ask(&workload, "/state");
        assert!(ask(&workload, "/").1.contains(" requests=2 "));
    }

    #[test]
    fn settings_are_kept_and_shown() {
        let workload = Workload::new(None);
        assert_eq!(ask(&workload, "/dirty?pages_per_s=2000&mib=8&random_percent=50").0, 200);
        assert_eq!(ask(&workload, "/cpu?percent=30").0, 200);
        assert_eq!(ask(&workload, "/fill?mib=1&kind=random").0, 200);
        let state = ask(&workload, "/state").1;
        for part in [
            "\"pages_per_s\":2000,\"mib\":8,\"random_percent\":50",
            "\"percent\":30",
            "\"text_mib\":0,\"random_mib\":1",
        ] {
            assert!(state.contains(part), "{part} in {state}");
        }
    }

    #[test]
    fn what_is_downloaded_is_as_long_as_was_asked_for() {
        let response = answer(&Workload::new(None), "/download", "mib=3&kib_per_s=64");
        let stream = response.stream.unwrap();
        assert_eq!((response.status, stream.bytes, stream.bytes_per_s), (200, 3 << 20, 64 << 10));
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        let workload = Workload::new(None);
        for target in [
            "/dirty",
            "/dirty?pages_per_s=x",
            "/dirty?pages_per_s=1&random_percent=101",
            "/database",
            "/churn?mib_per_s=x",
            "/download",
            "/download?mib=99999999",
            "/cpu?percent=-1",
            "/cpu?percent=99999",
            "/counter/start?hz=0",
        ] {
            let (status, why) = ask(&workload, target);
            assert_eq!(status, 400, "{target}");
            assert!(!why.is_empty(), "{target}");
        }
        assert_eq!(ask(&workload, "/nothing").0, 404);
        assert_eq!(ask(&workload, "/fill?mib=99999999").0, 507);
        assert_eq!(ask(&workload, "/fill?mib=1&kind=zeros").0, 400);
        // Without a disk that has space for them.
        assert_eq!(ask(&workload, "/database?pages_per_s=1").0, 507);
        assert_eq!(ask(&workload, "/churn?mib_per_s=1").0, 507);
    }

    #[test]
    fn quotes_and_control_characters_stay_inside_their_string() {
        assert_eq!(quote("a\"b\\c\nd"), r#""a\"b\\c d""#);
    }
}
