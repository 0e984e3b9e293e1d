//! What the browser shows and what keys do to it, without a terminal.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use safelight_convert::{OpaqueTensor, Source};
use safelight_format::{Dtype, TensorSpec, shown};

use super::fuzzy::{self, Found};
use super::stats::Stats;
use super::tree::{Order, Row, Tree};

/// Tensors up to this size are read as soon as they are looked at; larger ones on request.
const READ_UNASKED_BYTES: u64 = 64 * 1024 * 1024;
/// How long a tensor is looked at before it is read.
const LOOKED_AT: Duration = Duration::from_millis(120);

/// A tensor as it is listed.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) name: String,
    /// `None`: one that the format does not have, so that its numbers can't be read.
    pub(crate) dtype: Option<Dtype>,
    /// What its file calls it.
    pub(crate) dtype_name: String,
    pub(crate) shape: Vec<u64>,
    /// [`u64::MAX`] if they are more than can be counted.
    pub(crate) bytes: u64,
}

impl Shown {
    fn of(tensor: &TensorSpec) -> Shown {
        Shown {
            name: tensor.name.clone(),
            dtype: Some(tensor.dtype),
            dtype_name: tensor.dtype.to_string(),
            shape: tensor.shape.clone(),
            bytes: tensor.byte_count().unwrap_or(u64::MAX),
        }
    }

    fn of_opaque(tensor: &OpaqueTensor) -> Shown {
        Shown {
            name: tensor.name.clone(),
            dtype: None,
            dtype_name: shown(&tensor.dtype).to_string(),
            shape: tensor.shape.clone(),
            bytes: tensor.byte_count,
        }
    }

    /// How many elements its shape says.
    pub(crate) fn elements(&self) -> u64 {
        self.shape.iter().copied().fold(1, u64::saturating_mul)
    }
}

/// What fills the screen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum View {
    #[default]
    Tensors,
    Metadata,
    Help,
}

/// A search for names.
#[derive(Debug, Default)]
pub(crate) struct Search {
    pub(crate) query: String,
    /// Whether keys are letters of the query.
    pub(crate) typing: bool,
    /// The tensors that fit, the best first.
    pub(crate) found: Vec<(usize, Found)>,
    /// What they fit: the query, or an earlier one while keys come.
    searched: Option<String>,
}

/// What is known of a tensor's numbers.
#[derive(Debug)]
pub(crate) enum Known {
    /// So much of it has been read, of 100.
    Reading(u64),
    Stats(Stats),
    Failed(String),
}

/// What the terminal's loop must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Quit,
    /// Ctrl-C.
    Interrupt,
}

/// The browser.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) label: String,
    pub(crate) tensors: Vec<Shown>,
    pub(crate) metadata: Vec<(String, String)>,
    pub(crate) notes: Vec<String>,
    pub(crate) tree: Tree,
    pub(crate) order: Order,
    rows: Vec<Row>,
    pub(crate) selected: usize,
    /// The first line that is seen.
    pub(crate) top: usize,
    /// How many lines are seen; drawing says so.
    pub(crate) page: usize,
    pub(crate) view: View,
    /// The first line that is seen of metadata.
    pub(crate) scroll: usize,
    /// How many there are; drawing says so.
    pub(crate) scroll_max: usize,
    pub(crate) search: Option<Search>,
    known: HashMap<usize, Known>,
    /// The tensor that is to be read whatever its size.
    asked_for: Option<usize>,
    looked_at: (Option<usize>, Instant),
}

impl App {
    pub(crate) fn new(source: &dyn Source) -> App {
        let known = source.tensors().iter().map(Shown::of);
        let opaque = source.opaque().iter().map(Shown::of_opaque);
        let tensors: Vec<Shown> = known.chain(opaque).collect();
        let sizes = tensors.iter().map(|tensor| (&*tensor.name, tensor.bytes));
        let tree = Tree::new(sizes);
        let pair = |(key, value): (&String, &String)| (key.clone(), value.clone());
        let mut app = App {
            label: source.label().to_owned(),
            tensors,
            metadata: source.metadata().iter().map(pair).collect(),
            notes: source.notes().iter().map(ToString::to_string).collect(),
            rows: tree.rows(),
            tree,
            order: Order::Name,
            selected: 0,
            top: 0,
            page: 1,
            view: View::Tensors,
            scroll: 0,
            scroll_max: 0,
            search: None,
            known: HashMap::new(),
            asked_for: None,
            looked_at: (None, Instant::now()),
        };
        // A single branch at the top says nothing: what is below it does.
        if let [only] = app.rows[..] {
            app.tree.set_open(only.branch, true);
            app.rows = app.tree.rows();
        }
        app
    }

    /// The lines of the tree, or nothing while found names are listed.
    pub(crate) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// How many lines the list has.
    pub(crate) fn line_count(&self) -> usize {
        match &self.search {
            Some(search) => search.found.len(),
            None => self.rows.len(),
        }
    }

    /// The branch under the bar.
    pub(crate) fn branch(&self) -> Option<usize> {
        match &self.search {
            Some(_) => None,
            None => self.rows.get(self.selected).map(|row| row.branch),
        }
    }

    /// The tensor under the bar.
    pub(crate) fn tensor(&self) -> Option<usize> {
        match &self.search {
            Some(search) => search.found.get(self.selected).map(|(tensor, _)| *tensor),
            None => self.tree.branch(self.branch()?).tensor,
        }
    }

    /// What is known of a tensor's numbers.
    pub(crate) fn known(&self, tensor: usize) -> Option<&Known> {
        self.known.get(&tensor)
    }

    /// Something became known.
    pub(crate) fn learn(&mut self, tensor: usize, known: Known) {
        self.known.insert(tensor, known);
    }

    /// The tensor whose numbers should be read now.
    pub(crate) fn wanted(&mut self, now: Instant) -> Option<usize> {
        let tensor = self.tensor();
        if self.looked_at.0 != tensor {
            self.looked_at = (tensor, now);
        }
        let tensor = tensor?;
        let shown = &self.tensors[tensor];
        shown.dtype?;
        let small = shown.bytes <= READ_UNASKED_BYTES;
        let long_enough = now.saturating_duration_since(self.looked_at.1) >= LOOKED_AT;
        let wanted = self.asked_for == Some(tensor) || small && long_enough;
        let open = matches!(self.known(tensor), None | Some(Known::Reading(_)));
        (wanted && open).then_some(tensor)
    }

    /// Whether a tensor is too large to be read without being asked.
    pub(crate) fn waits_for_request(&self, tensor: usize) -> bool {
        self.tensors[tensor].bytes > READ_UNASKED_BYTES && self.asked_for != Some(tensor)
    }

    /// How many tensors and bytes of each dtype lie at and below a branch.
    pub(crate) fn dtypes_below(
        &self,
        branch: usize,
    ) -> BTreeMap<(Option<Dtype>, &str), (u64, u64)> {
        let mut dtypes: BTreeMap<_, (u64, u64)> = BTreeMap::new();
        for tensor in self.tree.tensors_below(branch) {
            let tensor = &self.tensors[tensor];
            let (count, bytes) = dtypes
                .entry((tensor.dtype, &*tensor.dtype_name))
                .or_default();
            *count += 1;
            *bytes = bytes.saturating_add(tensor.bytes);
        }
        dtypes
    }

    /// A key was pressed.
    pub(crate) fn key(&mut self, key: KeyEvent) -> Option<Wish> {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        if control && matches!(key.code, KeyCode::Char('c' | 'C')) {
            return Some(Wish::Interrupt);
        }
        if self.search.as_ref().is_some_and(|search| search.typing) {
            self.type_key(key.code, control);
            return None;
        }
        match (self.view, key.code) {
            (View::Tensors, KeyCode::Char('q')) => return Some(Wish::Quit),
            (View::Tensors, KeyCode::Esc) if self.search.is_none() => return Some(Wish::Quit),
            (View::Tensors, code) => self.tree_key(code),
            (_, KeyCode::Esc | KeyCode::Char('q' | 'm' | '?') | KeyCode::Left) => {
                self.view = View::Tensors;
            }
            (_, code) => self.scroll_key(code),
        }
        None
    }

    fn tree_key(&mut self, code: KeyCode) {
        match code {
            KeyCode::Char('?') | KeyCode::F(1) => self.show(View::Help),
            KeyCode::Char('m') => self.show(View::Metadata),
            KeyCode::Char('/') => {
                let query = self.search.take().map(|search| search.query);
                self.search = Some(Search {
                    query: query.unwrap_or_default(),
                    typing: true,
                    found: Vec::new(),
                    searched: None,
                });
            }
            KeyCode::Esc => self.end_search(),
            KeyCode::Enter | KeyCode::Char(' ') => self.enter(),
            KeyCode::Right | KeyCode::Char('l') => self.go_in(),
            KeyCode::Left | KeyCode::Char('h') => self.go_out(),
            KeyCode::Char('+' | 'E') => self.open_all(true),
            KeyCode::Char('-' | 'C') => self.open_all(false),
            KeyCode::Char('s') => self.change_order(),
            code => self.move_key(code),
        }
    }

    fn show(&mut self, view: View) {
        (self.view, self.scroll) = (view, 0);
    }

    fn move_key(&mut self, code: KeyCode) {
        let last = self.line_count().saturating_sub(1);
        let page = self.page.max(1);
        self.selected = match code {
            KeyCode::Down | KeyCode::Char('j') => self.selected + 1,
            KeyCode::Up | KeyCode::Char('k') => self.selected.saturating_sub(1),
            KeyCode::PageDown => self.selected + page,
            KeyCode::PageUp => self.selected.saturating_sub(page),
            KeyCode::Home | KeyCode::Char('g') => 0,
            KeyCode::End | KeyCode::Char('G') => last,
            _ => self.selected,
        }
        .min(last);
    }

    fn scroll_key(&mut self, code: KeyCode) {
        let page = self.page.max(1);
        self.scroll = match code {
            KeyCode::Down | KeyCode::Char('j') => self.scroll + 1,
            KeyCode::Up | KeyCode::Char('k') => self.scroll.saturating_sub(1),
            KeyCode::PageDown | KeyCode::Char(' ') => self.scroll + page,
            KeyCode::PageUp => self.scroll.saturating_sub(page),
            KeyCode::Home | KeyCode::Char('g') => 0,
            KeyCode::End | KeyCode::Char('G') => self.scroll_max,
            _ => self.scroll,
        }
        .min(self.scroll_max);
    }

    fn type_key(&mut self, code: KeyCode, control: bool) {
        let edits = matches!(code, KeyCode::Backspace | KeyCode::Char(_));
        if !edits {
            self.look_for();
        }
        let Some(search) = &mut self.search else {
            return;
        };
        match code {
            KeyCode::Esc => self.end_search(),
            KeyCode::Enter if search.query.is_empty() => self.end_search(),
            KeyCode::Enter => search.typing = false,
            KeyCode::Up | KeyCode::Down | KeyCode::PageUp | KeyCode::PageDown => {
                self.move_key(code);
            }
            KeyCode::Backspace => {
                search.query.pop();
            }
            KeyCode::Char('u' | 'w') if control => search.query.clear(),
            KeyCode::Char(c) if !control && !c.is_control() => search.query.push(c),
            _ => {}
        }
    }

    /// Lists the names that fit the query, if it changed: once for all keys that came together, for there may be a million names.
    pub(crate) fn look_for(&mut self) {
        let Some(search) = &mut self.search else {
            return;
        };
        if search.searched.as_ref() == Some(&search.query) {
            return;
        }
        let fits = |index: usize| {
            let found = fuzzy::find(&self.tensors[index].name, &search.query)?;
            Some((index, found))
        };
        // What fits a longer query fits its beginning too.
        let narrows = search.searched.as_ref();
        search.found = match narrows.is_some_and(|before| search.query.starts_with(before)) {
            true => {
                let mut among: Vec<usize> = search.found.iter().map(|(index, _)| *index).collect();
                among.sort_unstable();
                among.into_iter().filter_map(fits).collect()
            }
            false => (0..self.tensors.len()).filter_map(fits).collect(),
        };
        search.searched = Some(search.query.clone());
        // Equally good ones stay in the file's order.
        search.found.sort_by_key(|(_, found)| -found.score);
        (self.selected, self.top) = (0, 0);
    }

    /// Back to the tree, at the tensor that was found.
    fn end_search(&mut self) {
        let tensor = self.tensor();
        self.search = None;
        (self.selected, self.top) = (0, 0);
        if let Some(found) = tensor.and_then(|tensor| self.tree.reveal(tensor)) {
            self.rows = self.tree.rows();
            self.select(found);
        }
    }

    fn select(&mut self, branch: usize) {
        let at = self.rows.iter().position(|row| row.branch == branch);
        self.selected = at.unwrap_or(self.selected.min(self.rows.len().saturating_sub(1)));
    }

    fn enter(&mut self) {
        if self.search.is_some() {
            return self.end_search();
        }
        let Some(branch) = self.branch() else { return };
        if self.tree.branch(branch).has_below() {
            let open = self.tree.branch(branch).open;
            self.set_open(branch, !open);
        } else {
            self.asked_for = self.tensor();
        }
    }

    fn go_in(&mut self) {
        let Some(branch) = self.branch() else { return };
        if self.tree.branch(branch).open {
            self.move_key(KeyCode::Down);
        } else {
            self.set_open(branch, true);
        }
    }

    fn go_out(&mut self) {
        let Some(branch) = self.branch() else { return };
        if self.tree.branch(branch).open {
            self.set_open(branch, false);
        } else if let Some(parent) = self.tree.parent(branch) {
            self.select(parent);
        }
    }

    fn set_open(&mut self, branch: usize, open: bool) {
        self.tree.set_open(branch, open);
        self.rows = self.tree.rows();
    }

    fn open_all(&mut self, open: bool) {
        if self.search.is_some() {
            return;
        }
        let mut branch = self.branch();
        self.tree.set_all_open(open);
        self.rows = self.tree.rows();
        // What was selected may be hidden now; what is above it isn't.
        while let Some(at) = branch {
            if self.rows.iter().any(|row| row.branch == at) {
                return self.select(at);
            }
            branch = self.tree.parent(at);
        }
    }

    fn change_order(&mut self) {
        self.order = match self.order {
            Order::Name => Order::Size,
            Order::Size => Order::Name,
        };
        let branch = self.branch();
        self.tree.sort(self.order);
        self.rows = self.tree.rows();
        if let Some(branch) = branch {
            self.select(branch);
        }
    }

    /// Moves the window so that the bar is in it.
    pub(crate) fn keep_in_view(&mut self, page: usize) {
        self.page = page.max(1);
        let last_top = self.line_count().saturating_sub(self.page);
        self.top = self
            .top
            .clamp((self.selected + 1).saturating_sub(self.page), self.selected)
            .min(last_top);
    }
}
