//! `sterna demo ha`: the host of a VM is killed, and the seconds are counted until its guest answers from another.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sterna_base::units::Bytes;
use sterna_client::vm::Vm;
use sterna_model::ha::Profile;
use sterna_model::meta::Name;

use super::{BEFORE, BOOT, Demo, Shown, answers, step};
use crate::bench::world::until;
use crate::place::{Host, Lab};
use crate::probe::Probes;
use crate::say::Say;
use crate::up::{self, Wishes};
use crate::user::{self, User};
use crate::{member, topology};

const VM: &str = "web";
const MEMORY: Bytes = Bytes::mib(128);
const PROFILE: Profile = Profile::Quick;
/// A voter that has just been started is silent for half a minute, and a change of profile takes two rounds.
const LEASES: Duration = Duration::from_secs(120);
/// Between two looks at what the server says.
const LOOK: Duration = Duration::from_millis(50);

/// Who is where.
struct Places {
    /// That is killed.
    lost: Host,
    /// That should take over.
    other: Host,
    /// Of a client that nothing happens to.
    client: Host,
}

impl Places {
    /// Wherever the VM is.
    fn of(lab: &Lab, vm: &Vm) -> Result<Self> {
        let owner = user::owner(vm)?;
        let lost = lab.host(owner.as_str()).with_context(|| format!("host {owner} is not in the lab"))?;
        let others = || lab.hosts().filter(|host| *host != lost);
        let other =
            others().find(|host| host.site == lost.site).context("the datacentre has one host only")?;
        let client = others().find(|host| host.site != lost.site).context("there is no other datacentre")?;
        Ok(Self { lost, other, client })
    }
}

/// What the server said, and when each word of it was heard first.
#[derive(Debug, Default)]
struct Story {
    told: Vec<(String, Duration)>,
}

impl Story {
    fn hear(&mut self, word: String, at: Duration) {
        if !self.told.iter().any(|(told, _)| *told == word) {
            self.told.push((word, at));
        }
    }

    /// In the order in which it was heard; the answer is the last of it.
    fn text(&self, answered: Duration) -> String {
        let answer = ("its guest answers".to_owned(), answered);
        let lines = self.told.iter().chain([&answer]);
        let line = |(word, at): &(String, Duration)| format!("  {:>5.1} s  {word}", at.as_secs_f64());
        lines.map(line).collect::<Vec<_>>().join("\n")
    }
}

impl Demo {
    /// Runs in a lab that is up. Prints as it goes.
    pub async fn run_ha(&self) -> Result<Shown> {
        let user = User::of(&self.lab)?;
        let (vm, tiny) = (Name::new(VM)?, Name::new("tiny")?);
        self.say_accel(&user).await?;
        step("image `tiny` is in the library", user.ensure_image(&tiny, &self.image)).await?;
        let web = step("VM `web` runs", user.ensure_vm(&vm, &tiny, MEMORY)).await?;
        let places = Places::of(&self.lab, &web)?;
        let (space, guest) = (self.lab.host_space(places.client), user::address(&web)?);
        step("it answers requests", answers(&space, guest)).await?;
        let datacentre = Name::new(&places.lost.site.letter().to_string())?;
        user.set_profile(&datacentre, PROFILE).await?;
        step("its host and another hold leases", leases(&user, &places)).await?;
        let covered = until(LEASES, "a lease", async || user.is_under_lease(&vm).await);
        step("it lives under its host's lease", covered).await?;
        let probes = Probes::start(Some(&space), Some(guest), None)?;
        tokio::time::sleep(BEFORE).await;
        let (host, client) = (places.lost.name(), places.client.name());
        println!("\nHost {host} loses its power now.\nA client on {client} keeps asking.");
        let counted = self.count(&user, &places, &probes).await;
        // Also when nobody answered: the host is not left off.
        let back = step(&format!("host {host} has power again"), self.power(&user, &places)).await;
        let seen = tokio::task::spawn_blocking(move || probes.finish()).await??;
        let (story, answered) = counted?;
        back?;
        let doubled = seen.udp.context("no echo")?.doubled;
        println!("\n{}", story.text(answered));
        println!("  datagrams answered by two copies: {doubled}");
        let now = user.running(&vm).await?;
        let is_there = *user::owner(&now)? == Name::new(&places.other.name())?;
        ensure!(is_there, "VM {vm} runs on host {} again", user::owner(&now)?);
        Ok(Shown { is_as_promised: doubled == 0 })
    }

    /// Kills the host and counts until the guest answers; from where is for who looks.
    async fn count(&self, user: &User, places: &Places, probes: &Probes) -> Result<(Story, Duration)> {
        let (lab, lost) = (self.lab.clone(), places.lost);
        let began = Instant::now();
        tokio::task::spawn_blocking(move || member::kill_host(&lab, lost)).await??;
        let echoed = probes.echoed().unwrap_or(0);
        let (mut story, mut second) = (Story::default(), 0);
        while probes.echoed().unwrap_or(0) == echoed {
            ensure!(began.elapsed() < BOOT, "VM {VM} does not answer from anywhere");
            // What a server says that is asked at a bad moment is not the story.
            if let Ok(heard) = hear(user, places).await {
                let at = began.elapsed();
                if at.as_secs() > second {
                    second = at.as_secs();
                    println!("{second:>4} s  {}", heard.join(", "));
                }
                heard.into_iter().for_each(|word| story.hear(word, at));
            }
            tokio::time::sleep(LOOK).await;
        }
        let answered = began.elapsed();
        println!("{:>6.1} s  {VM} ANSWERS", answered.as_secs_f64());
        Ok((story, answered))
    }

    async fn power(&self, user: &User, places: &Places) -> Result<()> {
        let (lab, host) = (self.lab.clone(), places.lost);
        let start = move || {
            topology::ensure_host(&lab, host)?;
            up::start_host(&lab, host, Wishes::default(), Say::Nothing)
        };
        tokio::task::spawn_blocking(start).await??;
        leases(user, places).await
    }

    /// What to try next after [`Demo::run_ha`].
    #[must_use]
    pub fn lines_to_paste_ha(&self) -> [String; 4] {
        let sterna = &self.program;
        [
            format!("{sterna} vm why web"),
            format!("{sterna} host list"),
            format!("{sterna} event list"),
            format!("{sterna} lab demo ha"),
        ]
    }
}

async fn leases(user: &User, places: &Places) -> Result<()> {
    for host in [places.lost, places.other] {
        let name = Name::new(&host.name())?;
        until(LEASES, "a lease", async || user.holds_lease(&name, PROFILE).await).await?;
    }
    Ok(())
}

/// What the server says of the host and of the VM. Short: it has to fit a narrow terminal.
async fn hear(user: &User, places: &Places) -> Result<[String; 2]> {
    let host = user.client.hosts().get(&Name::new(&places.lost.name())?).await?;
    let vm = user.client.vms().get(&Name::new(VM)?).await?;
    let lease = host.status.map_or_else(|| "-".to_owned(), |status| status.ha);
    let state = vm.status.as_ref().map_or("-", |status| status.state.word());
    Ok([format!("{} {lease}", host.meta.name), format!("{VM} {state} on {}", user::owner(&vm)?)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_is_told_once_when_it_was_first_heard_and_fits_a_narrow_terminal() {
        let seconds = Duration::from_secs_f64;
        let mut story = Story::default();
        for (word, at) in [("a1 up", 0.1), ("a1 suspect", 2.0), ("a1 up", 2.1), ("web starting on a2", 7.25)]
        {
            story.hear(word.to_owned(), seconds(at));
        }
        let text = story.text(seconds(11.04));
        let expected = [
            "    0.1 s  a1 up",
            "    2.0 s  a1 suspect",
            "    7.2 s  web starting on a2",
            "   11.0 s  its guest answers",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
        assert!(text.lines().all(|line| line.len() <= 40));
    }
}
