//! The forecast in words.

use std::fmt;

use super::{Cluster, Job, Kept, Memory, Sharding, Time, Trained};

/// What a job takes on some cards, and on fewer of them.
#[derive(Debug, Clone)]
pub struct Forecast {
    job: Job,
    cluster: Cluster,
    /// What a card costs an hour, in whatever currency.
    price: Option<f64>,
    /// Tokens to be trained on in all.
    tokens: Option<f64>,
}

/// A card is not filled to the last byte: allocators leave gaps.
const FILLED: f64 = 0.95;

impl Forecast {
    /// What a job takes. With a `price` of a card and hour it says what that costs, and with the number of all `tokens` what all of the
    /// training does.
    #[must_use]
    pub fn new(job: Job, cluster: Cluster, price: Option<f64>, tokens: Option<f64>) -> Self {
        Self { job, cluster, price, tokens }
    }

    /// Memory and time on this many cards.
    fn on(&self, cards: usize) -> (Memory, Time) {
        let cluster = Cluster { cards, in_a_machine: self.cluster.in_a_machine.min(cards), ..self.cluster };
        (Memory::of(&self.job, &cluster), Time::of(&self.job, &cluster))
    }

    fn fits(&self, memory: &Memory) -> bool {
        memory.gib() <= FILLED * self.cluster.card.memory
    }

    /// Whether it fits on the cards that were asked for.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        self.fits(&self.on(self.cluster.cards).0)
    }

    /// The least number of cards on which it fits, of the powers of two and the number that was asked for.
    #[must_use]
    pub fn least(&self) -> Option<usize> {
        self.counts().into_iter().find(|&cards| self.fits(&self.on(cards).0))
    }

    /// Numbers of cards to be compared: powers of two up to what was asked for; beyond it, if that is too few.
    fn counts(&self) -> Vec<usize> {
        let asked = self.cluster.cards;
        let mut counts: Vec<usize> =
            std::iter::successors(Some(1), |n| Some(2 * n)).take_while(|&n| n < asked).collect();
        counts.push(asked);
        let mut more = asked.next_power_of_two();
        while !self.fits(&self.on(counts[counts.len() - 1]).0) && more < 1 << 16 {
            more *= 2;
            counts.push(more);
        }
        counts
    }

    /// Whether fewer cards would do.
    fn advice(&self) -> String {
        let asked = self.cluster.cards;
        let Some(least) = self.least() else {
            return "It fits on no number of these cards: shorten sequences, or keep less of the forward pass."
                .to_owned();
        };
        if least > asked {
            return format!("It does not fit on {asked} of these cards; {least} have the memory for it.");
        }
        let rate = |cards: usize| self.on(cards).1.rate();
        // The fewest that train no more slowly, each, than they would together.
        let fewest = self.counts().into_iter().find(|&cards| cards >= least && cards < asked);
        let all = asked as f64 * rate(asked);
        match fewest {
            Some(fewer) if fewer as f64 * rate(fewer) >= all => format!(
                "{fewer} {} do: they train {} tokens/s, and {asked} together no more.",
                if fewer == 1 { "card would" } else { "cards would" },
                thousands(fewer as f64 * rate(fewer))
            ),
            Some(fewer) => {
                let (longer, cheaper) = (all / (fewer as f64 * rate(fewer)), rate(fewer) / rate(asked));
                format!(
                    "{fewer} {} have the memory for it: training takes {longer:.1} times as long there, and {:.0} % of the card hours.",
                    if fewer == 1 { "card would" } else { "cards would" },
                    100.0 / cheaper
                )
            }
            None => "Fewer of these cards have not the memory for it.".to_owned(),
        }
    }

    /// What a million tokens cost on this many cards.
    fn of_million(&self, rate: f64) -> Option<f64> {
        self.price.map(|price| price / 3600.0 * 1e6 / rate)
    }
}

/// With a comma at each thousand.
fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut all = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            all.push(',');
        }
        all.push(digit);
    }
    all
}

fn gib(bytes: f64) -> String {
    format!("{:.2} GiB", bytes / 1073741824.0)
}

fn seconds(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.1} ms", 1e3 * seconds) } else { format!("{seconds:.2} s") }
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { job, cluster, .. } = self;
        let (memory, time) = self.on(cluster.cards);
        let card = &cluster.card;
        let trained = match job.trained {
            Trained::All => "all of them trained".to_owned(),
            Trained::Adapters(parameters) => format!("{:.1} million of adapters trained", parameters as f64 / 1e6),
            Trained::AdaptersOnNf4(parameters) => {
                format!("in NF4, {:.1} million of adapters trained", parameters as f64 / 1e6)
            }
        };
        let kept = match job.kept {
            Kept::All => "all activations kept",
            Kept::Selected => "some activations kept",
            Kept::Inputs => "blocks run again",
        };
        let divided = match job.sharding {
            Sharding::Blocks => "parameters divided, gathered twice a micro-batch",
            Sharding::Steps => "parameters divided, gathered once a micro-batch",
            Sharding::None => "each card with all parameters",
        };
        writeln!(f, "{:.2} billion parameters, {trained}", job.parameters() / 1e9)?;
        writeln!(
            f,
            "{} x {} at {:.0} W, {} in a machine, {:.0} Gbit/s a card between machines; {divided}",
            cluster.cards,
            card.name,
            card.power,
            cluster.in_a_machine.min(cluster.cards),
            cluster.network * 8e-9
        )?;
        writeln!(
            f,
            "On each card {} x {} tokens, {} a step, {kept}\n\nMemory of a card",
            job.sequences,
            job.length,
            if job.micro_batches == 1 { "once".to_owned() } else { format!("{} times", job.micro_batches) }
        )?;
        for (name, bytes) in memory.parts().into_iter().filter(|(_, bytes)| *bytes > 0.0) {
            writeln!(f, "  {name:<26}{:>12}", gib(bytes))?;
        }
        let fits = if self.fits(&memory) { "" } else { ": it does not fit" };
        writeln!(f, "  {:<26}{:>8.2} GiB  of {:.1} GiB{fits}\n\nA step", "together", memory.gib(), card.memory)?;
        for (name, value) in [
            ("computing", seconds(time.compute)),
            ("waiting", seconds(time.waiting)),
            ("communication", format!("{}, most of it while it computes", seconds(time.communication))),
            ("moved", format!("{} a card, {} of it through the network", gib(time.moved), gib(time.through_network))),
            (
                "tokens",
                format!("{}, {}/s a card", thousands(time.tokens * cluster.cards as f64), thousands(time.rate())),
            ),
        ] {
            writeln!(f, "  {name:<16}{value:>12}")?;
        }
        writeln!(f, "\n{:>8}{:>14}{:>12}{:>14}{:>10}", "cards", "GiB a card", "a step", "tokens/s", "of linear")?;
        let first = self.on(self.least().unwrap_or(cluster.cards)).1.rate();
        for cards in self.counts() {
            let (memory, time) = self.on(cards);
            let fits = if self.fits(&memory) { "" } else { "  too little memory" };
            let price =
                self.of_million(time.rate()).map_or(String::new(), |price| format!("  {price:.3} a million tokens"));
            writeln!(
                f,
                "{cards:>8}{:>14.1}{:>12}{:>14}{:>8.0} %{price}{fits}",
                memory.gib(),
                seconds(time.step()),
                thousands(cards as f64 * time.rate()),
                100.0 * time.rate() / first
            )?;
        }
        if let Some(tokens) = self.tokens {
            let hours = tokens / (time.rate() * cluster.cards as f64) / 3600.0;
            let cost = self.price.map_or(String::new(), |price| {
                format!(", {} in all at {price} a card and hour", thousands(price * hours * cluster.cards as f64))
            });
            writeln!(f, "\n{} million tokens take {hours:.1} hours{cost}", thousands(tokens / 1e6))?;
        }
        writeln!(f, "\n{}", self.advice())
    }
}
