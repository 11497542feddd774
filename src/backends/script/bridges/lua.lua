-- The bridge between blk and an nbdkit plugin written in Lua: it speaks docs/exec-protocol.md on standard input and output
-- and calls the functions of the script named by its first argument. Given to the interpreter by blk; nothing is installed.
-- What the script prints goes to standard error, since standard output is taken.
local input, output = io.stdin, io.stdout
output:setvbuf("full", 256 * 1024)
io.stdout = io.stderr
io.output(io.stderr)
print = function(...)
  local words = table.pack(...)
  for i = 1, words.n do words[i] = tostring(words[i]) end
  io.stderr:write(table.concat(words, "\t"), "\n")
end

local required = {"open", "get_size", "pread"}
local methods = {
  "open", "get_size", "pread", "config", "config_complete", "get_ready", "after_fork", "list_exports", "default_export",
  "preconnect", "close", "export_description", "block_size", "is_rotational", "can_multi_conn", "can_write", "can_flush",
  "can_trim", "can_zero", "can_fast_zero", "can_fua", "can_cache", "can_extents", "pwrite", "flush", "trim", "zero",
  "cache", "extents",
}
local questions = {
  is_rotational = true, can_multi_conn = true, can_write = true, can_flush = true, can_trim = true, can_zero = true,
  can_fast_zero = true, can_extents = true,
}
local handles, last_handle = {}, 0

nbdkit = nbdkit or {}
local function message(kind, text)
  text = tostring(text)
  output:write("- ", kind, " ", #text, "\n", text)
end
nbdkit.debug = function(text) message("debug", text) end

local function defined(name) return type(_G[name]) == "function" and name or nil end
local builtin = {}
for name in pairs(_G) do builtin[name] = _G[name] end
local function own(name) return defined(name) and _G[name] ~= builtin[name] end

local function plain(word)
  if word == "-" then return "" end
  return (word:gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end))
end

local function load_script()
  local path = arg[1]
  arg = {[0] = path}
  assert(loadfile(path))()
  local names = {}
  for _, name in ipairs(required) do
    if not own(name) then error("the script does not define " .. name .. "; open, get_size and pread are needed", 0) end
  end
  for _, name in ipairs(methods) do
    if own(name) then names[#names + 1] = name end
  end
  return table.concat(names, " ") .. " magic_config_key dump_plugin unload"
end

local function number(value)
  if math.type and math.type(value) == "float" then return string.format("%d", value) end
  return tostring(value)
end

-- Methods of an open handle. The result is the output, or true or false for questions.
local handle_methods = {
  pread = function(handle, words)
    local bytes = pread(handle, tonumber(words[2]), tonumber(words[3]))
    local count = tonumber(words[2])
    if #bytes < count then error(("pread returned %d bytes instead of %d"):format(#bytes, count), 0) end
    return bytes:sub(1, count)
  end,
  pwrite = function(handle, words, data) pwrite(handle, data, tonumber(words[3])) end,
  flush = function(handle) flush(handle) end,
  trim = function(handle, words) trim(handle, tonumber(words[2]), tonumber(words[3])) end,
  cache = function(handle, words) cache(handle, tonumber(words[2]), tonumber(words[3])) end,
  zero = function(handle, words)
    zero(handle, tonumber(words[2]), tonumber(words[3]), words[4]:find("may_trim", 1, true) ~= nil)
  end,
  extents = function(handle, words)
    local lines = {}
    for _, extent in ipairs(extents(handle, tonumber(words[2]), tonumber(words[3]))) do
      lines[#lines + 1] = ("%s %s %s\n"):format(number(extent[1]), number(extent[2]), number(extent[3] or 0))
    end
    return table.concat(lines)
  end,
  close = function(handle, words)
    close(handle)
    handles[words[1]] = nil
  end,
  block_size = function(handle) return table.concat({block_size(handle)}, " ") end,
}

-- The kind of the answer, and its output.
local function answer(method, words, data)
  if method == "load" then return "ok", load_script() end
  if method == "magic_config_key" then return "ok", "script" end
  if method == "unload" then return "ok", "" end
  if method == "dump_plugin" then
    if own("dump_plugin") then dump_plugin() end
    return "ok", "lua_version=" .. _VERSION:gsub("Lua ", "") .. "\n"
  end
  if not own(method) then return "missing", "" end
  if method == "config" then
    config(plain(words[1]), plain(words[2]))
    return "ok", ""
  elseif method == "preconnect" then
    preconnect(words[1] == "true")
    return "ok", ""
  elseif method == "open" then
    local handle = open(words[1] == "true")
    if handle == nil then error("open returned nil", 0) end
    last_handle = last_handle + 1
    handles[tostring(last_handle)] = handle
    return "ok", tostring(last_handle)
  elseif method == "default_export" then
    return "ok", "NAMES\n" .. default_export(words[1] == "true", words[2] == "true") .. "\n"
  elseif method == "list_exports" then
    local lines = {"INTERLEAVED\n"}
    for _, entry in ipairs(list_exports(words[1] == "true", words[2] == "true")) do
      if type(entry) ~= "table" then entry = {entry} end
      lines[#lines + 1] = entry[1] .. "\n" .. (entry[2] or "") .. "\n"
    end
    return "ok", table.concat(lines)
  elseif #words == 0 then
    _G[method]()
    return "ok", ""
  end
  local handle = handles[words[1]]
  if handle_methods[method] then return "ok", handle_methods[method](handle, words, data) or "" end
  local value = _G[method](handle)
  if questions[method] then return value and "ok" or "false", "" end
  return "ok", number(value)
end

while true do
  local line = input:read("L")
  if not line then break end
  local words = {}
  for word in line:gmatch("%S+") do words[#words + 1] = word end
  local id, method, length = words[1], words[2], tonumber(words[3])
  local data = length > 0 and input:read(length) or ""
  local done, kind, text = pcall(answer, method, {table.unpack(words, 4)}, data)
  if not done then
    kind, text = "error", "EIO " .. tostring(kind):gsub("%s+$", "")
  end
  output:write(id, " ", kind, " ", #text, "\n", text)
  output:flush()
end
