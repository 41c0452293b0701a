//! Lines between machines: they lose, double, reorder and delay, one way as well as both.

use crate::random::Random;

/// How bad things are, drawn per seed. Rates are of 1,000.
#[derive(Debug, Clone)]
pub struct Weather {
    pub loss: u64,
    pub dup: u64,
    pub late: u64,
    pub late_ms_max: u64,
    /// Orders and what goes to the store and back are late this often.
    pub control_late: u64,
    pub spawn_slow: u64,
    pub spawn_ms_max: u64,
    pub kill_ms_max: u64,
    /// Of boots, how many find the page of the one before.
    pub page_survives: u64,
}

impl Weather {
    #[must_use]
    pub fn fair() -> Self {
        Self {
            loss: 0,
            dup: 0,
            late: 0,
            late_ms_max: 0,
            control_late: 0,
            spawn_slow: 0,
            spawn_ms_max: 20,
            kill_ms_max: 20,
            page_survives: 500,
        }
    }

    #[must_use]
    pub fn drawn(random: &mut Random) -> Self {
        Self {
            loss: *random.pick(&[0, 10, 30, 200]),
            dup: *random.pick(&[0, 10, 200]),
            late: *random.pick(&[0, 5, 20, 100]),
            late_ms_max: *random.pick(&[500, 5_000, 60_000]),
            control_late: *random.pick(&[0, 20, 200]),
            spawn_slow: *random.pick(&[0, 0, 200]),
            spawn_ms_max: *random.pick(&[100, 5_000, 20_000]),
            kill_ms_max: *random.pick(&[20, 500]),
            page_survives: *random.pick(&[0, 500, 1000]),
        }
    }
}

/// One direction of one line.
#[derive(Debug, Clone, Copy, Default)]
struct Line {
    cut_until: u64,
    slow_until: u64,
    slower_by: u64,
}

#[derive(Debug)]
pub struct Network {
    nodes: usize,
    lines: Vec<Line>,
}

impl Network {
    #[must_use]
    pub fn new(nodes: usize) -> Self {
        Self { nodes, lines: vec![Line::default(); nodes * nodes] }
    }

    pub fn cut(&mut self, from: usize, to: usize, until: u64) {
        let line = &mut self.lines[from * self.nodes + to];
        line.cut_until = line.cut_until.max(until);
    }

    pub fn slow(&mut self, (from, to): (usize, usize), by: u64, until: u64) {
        let line = &mut self.lines[from * self.nodes + to];
        (line.slower_by, line.slow_until) = (by, until);
    }

    /// When what leaves now arrives, each time that it does.
    pub fn arrivals(
        &self,
        (from, to): (usize, usize),
        now: u64,
        weather: Option<(&Weather, u64)>,
        random: &mut Random,
    ) -> [Option<u64>; 2] {
        let line = self.lines[from * self.nodes + to];
        if now < line.cut_until {
            return [None; 2];
        }
        let slower = if now < line.slow_until { line.slower_by } else { 0 };
        let Some((weather, late)) = weather else {
            return [Some(now + random.between(100_000, 2_000_000)), None];
        };
        let one = |random: &mut Random| {
            let base = random.between(100_000, 5_000_000);
            let is_late = late > 0 && random.chance(late);
            let extra = if is_late { random.below(weather.late_ms_max * 1_000_000) } else { 0 };
            now + base + slower + extra
        };
        let first = (!random.chance(weather.loss)).then(|| one(random));
        let second = random.chance(weather.dup).then(|| one(random));
        [first, second]
    }
}
