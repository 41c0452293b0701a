//! All objects of one kind, by name. A clone costs one pointer; the first change after it copies one pointer an object.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::collections::btree_map;
use std::ops::{Index, RangeBounds};
use std::sync::Arc;

use sterna_model::meta::Name;

use super::Entry;

/// Read like a `BTreeMap<Name, Entry<S, D, R>>`.
#[derive(Debug)]
pub struct Table<S, D, R>(Arc<Entries<S, D, R>>);

type Entries<S, D, R> = BTreeMap<Name, Arc<Entry<S, D, R>>>;

impl<S, D, R> Clone for Table<S, D, R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S, D, R> Default for Table<S, D, R> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<S, D, R> Table<S, D, R> {
    pub fn get<Q: Ord + ?Sized>(&self, name: &Q) -> Option<&Entry<S, D, R>>
    where
        Name: Borrow<Q>,
    {
        self.0.get(name).map(|entry| &**entry)
    }

    pub fn get_key_value<Q: Ord + ?Sized>(&self, name: &Q) -> Option<(&Name, &Entry<S, D, R>)>
    where
        Name: Borrow<Q>,
    {
        self.0.get_key_value(name).map(|(name, entry)| (name, &**entry))
    }

    pub fn contains_key<Q: Ord + ?Sized>(&self, name: &Q) -> bool
    where
        Name: Borrow<Q>,
    {
        self.0.contains_key(name)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[must_use]
    pub fn iter(&self) -> Iter<'_, S, D, R> {
        Iter(self.0.iter())
    }

    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &Name> + ExactSizeIterator {
        self.0.keys()
    }

    pub fn values(&self) -> impl DoubleEndedIterator<Item = &Entry<S, D, R>> + ExactSizeIterator {
        self.0.values().map(|entry| &**entry)
    }

    pub fn range<Q, B>(&self, bounds: B) -> impl DoubleEndedIterator<Item = (&Name, &Entry<S, D, R>)>
    where
        Q: Ord + ?Sized,
        Name: Borrow<Q>,
        B: RangeBounds<Q>,
    {
        self.0.range(bounds).map(|(name, entry)| (name, &**entry))
    }

    /// Changes an object in place, made if absent; it goes when `change` leaves nothing of it and says so with `true`.
    pub(super) fn change<T>(
        &mut self,
        name: &Name,
        change: impl FnOnce(&mut Entry<S, D, R>) -> (T, bool),
    ) -> T {
        let table = Arc::make_mut(&mut self.0);
        let (result, is_void) = match table.get_mut(name) {
            Some(entry) => change(Arc::make_mut(entry)),
            None => change(Arc::make_mut(table.entry(name.clone()).or_default())),
        };
        if is_void {
            table.remove(name);
        }
        result
    }
}

impl<S, D, R> Index<&Name> for Table<S, D, R> {
    type Output = Entry<S, D, R>;

    fn index(&self, name: &Name) -> &Self::Output {
        &self.0[name]
    }
}

/// The objects in the order of their names.
#[derive(Debug)]
pub struct Iter<'a, S, D, R>(btree_map::Iter<'a, Name, Arc<Entry<S, D, R>>>);

impl<'a, S, D, R> Iterator for Iter<'a, S, D, R> {
    type Item = (&'a Name, &'a Entry<S, D, R>);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|(name, entry)| (name, &**entry))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl<'a, S, D, R> IntoIterator for &'a Table<S, D, R> {
    type Item = (&'a Name, &'a Entry<S, D, R>);
    type IntoIter = Iter<'a, S, D, R>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
