from .file_names import file_key as file_key
from .json_text import numbered_lines as numbered_lines
from .json_text import parse_json as parse_json
from .json_text import read_json as read_json
from .text import is_unicode as is_unicode
from .text import read_bytes as read_bytes
from .text import read_text as read_text
from .yaml_text import read_yaml as read_yaml
