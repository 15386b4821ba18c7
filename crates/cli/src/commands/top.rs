//! `muster top`: a live view of machines and the host.

use std::time::Duration;

use api::endpoint::NodeList;
use api::endpoint::VmList;
use api::types::NodeView;
use api::types::VmListQuery;
use api::types::VmSummary;
use ratatui::DefaultTerminal;
use ratatui::Frame;
use ratatui::crossterm::event;
use ratatui::crossterm::event::Event;
use ratatui::crossterm::event::KeyCode;
use ratatui::crossterm::event::KeyEventKind;
use ratatui::crossterm::event::KeyModifiers;
use ratatui::layout::Constraint;
use ratatui::layout::Layout;
use ratatui::style::Color;
use ratatui::style::Modifier;
use ratatui::style::Style;
use ratatui::text::Line;
use ratatui::widgets::Cell;
use ratatui::widgets::Paragraph;
use ratatui::widgets::Row;
use ratatui::widgets::Table;
use ratatui::widgets::TableState;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::sync::mpsc;

use crate::commands::vm;
use crate::context::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::output::Tone;
use crate::output::clean_line;
use crate::output::word;

/// How often the keyboard's thread looks whether it is still wanted.
const KEY_POLL: Duration = Duration::from_millis(200);
/// Keys that may wait; more than a hand types between two pictures.
const KEYS_MAX: usize = 64;
/// How long an answer may take before the view says that there is none.
const PATIENCE: Duration = Duration::from_secs(5);

/// Watch machines live: phase, processor, memory, heartbeat.
///
/// q leaves, c m n p sort by processor, memory, name and phase, the arrows scroll. Where standard
/// output is not a terminal, one plain table is printed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster top
  muster top --interval 5
  muster top | head")]
pub(crate) struct Args {
    /// Seconds between two looks, 1 to 60.
    #[arg(
        short,
        long,
        value_name = "SECONDS",
        default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(1..=60)
    )]
    interval: u64,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    if context.out.json {
        let vms = context.query::<VmList>(&[], &VmListQuery::default()).await?;
        return context.out.raw_json(&vms.raw);
    }
    let mut view = View::new(&context.out);
    view.take(look(context).await)?;
    if !context.out.terminal {
        let nodes: Vec<_> = view.nodes.iter().map(node_line).collect();
        context.out.text(&nodes.join("\n"))?;
        return context.out.text(&vm::render_list(&context.out, &view.vms));
    }
    // It puts the terminal back on a panic, too.
    let mut terminal = ratatui::try_init().map_err(|error| {
        CliError::failed(
            format!("the terminal cannot be used: {error}"),
            "send the output through a pipe for a plain table: muster top | cat",
        )
    })?;
    let shown = show(&mut terminal, &mut view, context, Duration::from_secs(args.interval)).await;
    ratatui::restore();
    shown
}

/// What there is now.
type Seen = Result<(Vec<VmSummary>, Vec<NodeView>), CliError>;

async fn look(context: &Context) -> Seen {
    let asked = async {
        let vms = context.query::<VmList>(&[], &VmListQuery::default()).await?.value;
        let nodes = context.get::<NodeList>(&[]).await?.value;
        Ok((vms, nodes))
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(seen) => seen,
        Err(_) => Err(CliError::failed("the daemon does not answer", "")),
    }
}

async fn show(
    terminal: &mut DefaultTerminal,
    view: &mut View,
    context: &Context,
    interval: Duration,
) -> Result<(), CliError> {
    let unusable = |error: std::io::Error| CliError::failed(format!("the terminal: {error}"), "");
    let mut terminate = signal(SignalKind::terminate()).map_err(unusable)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(unusable)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(unusable)?;
    let mut keys = keyboard();
    let mut ticks = tokio::time::interval(interval);
    loop {
        terminal.draw(|frame| view.draw(frame)).map_err(unusable)?;
        tokio::select! {
            _ = ticks.tick() => {
                // A daemon that is away for a moment is shown, and asked again.
                if let Err(error) = view.take(look(context).await) {
                    view.trouble = Some(clean_line(&error.error().message));
                }
            }
            key = keys.recv() => match key.map(|key| view.press(key)) {
                Some(Pressed::Stay) => {}
                Some(Pressed::Quit) | None => return Ok(()),
                Some(Pressed::Interrupt) => return Err(CliError::interrupted_silently()),
            },
            _ = terminate.recv() => return Err(CliError::interrupted_silently()),
            _ = hang_up.recv() => return Err(CliError::interrupted_silently()),
            _ = interrupt.recv() => return Err(CliError::interrupted_silently()),
        }
    }
}

/// Reads keys in a thread of its own: the terminal has no other way to wait for them.
fn keyboard() -> mpsc::Receiver<Event> {
    let (send, receive) = mpsc::channel(KEYS_MAX);
    std::thread::spawn(move || {
        while !send.is_closed() {
            match event::poll(KEY_POLL) {
                Ok(false) => {}
                Ok(true) => match event::read() {
                    // A full queue means that keys come faster than pictures: drop them.
                    Ok(event) => drop(send.try_send(event)),
                    Err(_) => return,
                },
                Err(_) => return,
            }
        }
    });
    receive
}

/// What a key asks for.
#[derive(Debug, PartialEq, Eq)]
enum Pressed {
    Stay,
    Quit,
    Interrupt,
}

/// What lines are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Cpu,
    Memory,
    Name,
    Phase,
}

struct View {
    vms: Vec<VmSummary>,
    nodes: Vec<NodeView>,
    order: Order,
    scroll: TableState,
    trouble: Option<String>,
    color: bool,
}

impl View {
    fn new(out: &Output) -> Self {
        Self {
            vms: Vec::new(),
            nodes: Vec::new(),
            order: Order::Cpu,
            scroll: TableState::default(),
            trouble: None,
            color: out.color,
        }
    }

    fn take(&mut self, seen: Seen) -> Result<(), CliError> {
        (self.vms, self.nodes) = seen?;
        self.trouble = None;
        self.sort();
        Ok(())
    }

    fn sort(&mut self) {
        let order = self.order;
        self.vms.sort_by(|a, b| {
            let by = match order {
                Order::Cpu => b.cpu_percent.cmp(&a.cpu_percent),
                Order::Memory => b.memory.cmp(&a.memory),
                Order::Name => std::cmp::Ordering::Equal,
                Order::Phase => word(&a.phase).cmp(&word(&b.phase)),
            };
            by.then_with(|| a.name.cmp(&b.name))
        });
    }

    fn press(&mut self, event: Event) -> Pressed {
        let Event::Key(key) = event else { return Pressed::Stay };
        if key.kind == KeyEventKind::Release {
            return Pressed::Stay;
        }
        match key.code {
            // In raw mode Ctrl-C is a key like others.
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                return Pressed::Interrupt;
            }
            KeyCode::Char('q') | KeyCode::Esc => return Pressed::Quit,
            KeyCode::Char('c') => self.order = Order::Cpu,
            KeyCode::Char('m') => self.order = Order::Memory,
            KeyCode::Char('n') => self.order = Order::Name,
            KeyCode::Char('p') => self.order = Order::Phase,
            KeyCode::Down | KeyCode::Char('j') => self.scroll.scroll_down_by(1),
            KeyCode::Up | KeyCode::Char('k') => self.scroll.scroll_up_by(1),
            KeyCode::PageDown => self.scroll.scroll_down_by(10),
            KeyCode::PageUp => self.scroll.scroll_up_by(10),
            _ => {}
        }
        self.sort();
        Pressed::Stay
    }

    fn draw(&mut self, frame: &mut Frame<'_>) {
        let nodes = u16::try_from(self.nodes.len()).unwrap_or(u16::MAX).clamp(1, 8);
        let areas = Layout::vertical([
            Constraint::Length(nodes),
            Constraint::Length(1),
            Constraint::Min(1),
            Constraint::Length(1),
        ])
        .split(frame.area());
        let lines: Vec<_> = self.nodes.iter().map(|node| Line::from(node_line(node))).collect();
        frame.render_widget(Paragraph::new(lines), areas[0]);
        let rows: Vec<_> = self.vms.iter().map(|vm| self.row(vm)).collect();
        let widths = [
            Constraint::Min(16),
            Constraint::Length(20),
            Constraint::Length(14),
            Constraint::Length(5),
            Constraint::Length(8),
            Constraint::Length(10),
            Constraint::Length(16),
            Constraint::Length(16),
        ];
        let header = ["NAME", "PHASE", "HEARTBEAT", "CPUS", "CPU", "MEMORY", "ADDRESS", "NODE"];
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let table = Table::new(rows, widths)
            .header(Row::new(header).style(bold))
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        frame.render_stateful_widget(table, areas[2], &mut self.scroll);
        let foot = match &self.trouble {
            Some(trouble) => Line::styled(trouble.clone(), self.style(Tone::Bad)),
            None => Line::from("q leave   sort: c processor  m memory  n name  p phase"),
        };
        frame.render_widget(Paragraph::new(foot), areas[3]);
    }

    fn row(&self, vm: &VmSummary) -> Row<'static> {
        let phase = match vm.busy {
            Some(verb) => format!("{} ({verb})", word(&vm.phase)),
            None => word(&vm.phase),
        };
        let cell = |text: String, tone| Cell::from(text).style(self.style(tone));
        let address = vm.addresses.first().map(|address| clean_line(address)).unwrap_or_default();
        Row::new([
            Cell::from(vm.name.to_string()),
            cell(phase, vm::phase_tone(vm.phase)),
            cell(word(&vm.heartbeat), vm::heartbeat_tone(vm.heartbeat)),
            Cell::from(vm.cpus.to_string()),
            Cell::from(format!("{} %", vm.cpu_percent)),
            Cell::from(vm.memory.to_string()),
            Cell::from(address),
            Cell::from(clean_line(&vm.node)),
        ])
    }

    fn style(&self, tone: Tone) -> Style {
        match tone {
            _ if !self.color => Style::new(),
            Tone::Good => Style::new().fg(Color::Green),
            Tone::Busy => Style::new().fg(Color::Yellow),
            Tone::Bad => Style::new().fg(Color::Red),
            Tone::Faint => Style::new().fg(Color::DarkGray),
            Tone::Plain => Style::new(),
        }
    }
}

fn node_line(node: &NodeView) -> String {
    format!(
        "{}: {} running, {} processors ({}), memory {} of {} available, storage {} free",
        node.name,
        node.vms_running,
        node.cpus,
        word(&node.accelerator),
        node.memory_available,
        node.memory,
        node.storage_available
    )
}
