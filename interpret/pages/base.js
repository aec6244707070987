"use strict";
// Helpers of all pages; the script of a page follows.

function byId(id) { return document.getElementById(id); }

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value; else made.setAttribute(name, value);
  }
  made.append(...children.filter(child => child !== null));
  return made;
}

