//! What operators do: new apps, other sizes, other images, stop, delete.

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;

use crate::marks::Marks;
use crate::node::Submitted;

/// Apps alive at once; beyond it operators only change what is there.
const APPS_MAX: usize = 6;

/// One app as its operator wants it.
#[derive(Clone, Debug)]
pub struct App {
    name: String,
    daemon: bool,
    replicas: usize,
    image: u32,
    unique: bool,
    hard: bool,
    surge: u32,
    unavailable: u32,
    stopped: bool,
    deleted: bool,
}

/// All apps there ever were.
#[derive(Debug, Default)]
pub struct Operator {
    apps: Vec<App>,
}

impl Operator {
    /// The next thing an operator submits, given how many nodes surely remain.
    pub fn act(
        &mut self,
        nodes: usize,
        rng: &mut Xoshiro256PlusPlus,
        marks: &mut Marks,
    ) -> Submitted {
        let alive: Vec<usize> = (0..self.apps.len()).filter(|i| !self.apps[*i].deleted).collect();
        if alive.is_empty() || (alive.len() < APPS_MAX && rng.random_bool(0.35)) {
            let app = new_app(self.apps.len(), nodes, rng);
            marks.hit(if app.daemon { "operator daemon" } else { "operator new" });
            self.apps.push(app);
            return submitted(&self.apps[self.apps.len() - 1]);
        }
        let at = alive[rng.random_range(0..alive.len())];
        let app = &mut self.apps[at];
        match rng.random_range(0..10) {
            0..4 => {
                app.image += 1;
                app.stopped = false;
                marks.hit("operator update");
            }
            4..7 if !app.daemon => {
                app.replicas = replicas(app.unique, nodes, rng);
                marks.hit("operator scale");
            }
            7 => {
                app.deleted = true;
                marks.hit("operator delete");
            }
            _ => {
                app.stopped = !app.stopped;
                marks.hit("operator stop");
            }
        }
        submitted(&self.apps[at])
    }
}

fn replicas(unique: bool, nodes: usize, rng: &mut Xoshiro256PlusPlus) -> usize {
    let most = if unique { nodes.saturating_sub(1).max(1) } else { (nodes * 3).min(30) };
    rng.random_range(0..=most)
}

fn new_app(number: usize, nodes: usize, rng: &mut Xoshiro256PlusPlus) -> App {
    let unique = rng.random_bool(0.25);
    App {
        name: format!("app{number}"),
        daemon: rng.random_bool(0.15),
        replicas: replicas(unique, nodes, rng).max(1),
        image: 1,
        unique,
        hard: rng.random_bool(0.2),
        surge: rng.random_range(0..3),
        unavailable: rng.random_range(1..3),
        stopped: false,
        deleted: false,
    }
}

fn submitted(app: &App) -> Submitted {
    let App { name, image, surge, unavailable, .. } = app;
    let mut text = format!("app = \"sim/{name}\"\n");
    if app.daemon {
        text.push_str("kind = \"daemon\"\n");
    } else {
        text.push_str(&format!("replicas = {}\n", app.replicas));
    }
    text.push_str(&format!(
        "[[container]]\nname = \"main\"\nimage = \"img:{image}\"\ncpu = 0.1\nmemory = \"64Mi\"\n"
    ));
    if !app.daemon {
        text.push_str("[place]\n");
        if app.unique {
            text.push_str("unique = \"host\"\n");
        }
        if app.hard {
            text.push_str("spread = [{ by = \"rack\", max_skew = 1, mode = \"hard\" }]\n");
        }
    }
    text.push_str(&format!("[update]\nmax_surge = {surge}\nmax_unavailable = {unavailable}\n"));
    Submitted {
        namespace: "sim".into(),
        app: name.clone(),
        generation: 0,
        stopped: app.stopped,
        deleted: app.deleted,
        text,
    }
}
